"""MP3, Ogg and FLAC are streams of packets, which tell how long a recording is, whatever its header states."""

import re
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

_MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]")
_MP3_TAG = re.compile(rb"(?:Xing|Info)\0\0\0([\0-\xff])(.{4})(.{4})", re.DOTALL)
_MP3_START_BYTES = 4096  # of a file, within which the first frame is
_MP3_TAG_REACH = 64  # bytes from the start of its frame on
_MP3_PADDING_AT = 142  # in a tag; the last 12 of 16 bits: how many samples at the end to leave out
_MP3_CHAIN = 3  # frames in a row, which chance does not put into other data
_MP3_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),  # MPEG 1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),  # MPEG 2 and 2.5
)
_BLOCK_BYTES = 1 << 20
_OGG_PAGE_BYTES = 65_307  # at most
_OGG_HEAD_BYTES = 27
_OGG_FIRST, _OGG_LAST = 2, 4  # flags of the pages of a stream
_FLAC_STREAM = b"fLaC\0\0\0\x22"
_FLAC_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Contents:
    """What a file holds, compared with what its header states."""

    problem: str | None = None  # why it cannot be read to its end
    remark: str | None = None  # what is suspicious in it
    is_for_libsndfile: bool = True  # whether that would read all of it
    has_true_mp3_tag: bool = False  # without, libsndfile guesses the length of MP3 by the size of the file
    patches: tuple[tuple[int, bytes], ...] = ()  # places in the header, and what libsndfile has to find there


def cut_off(expected: int, found: int, unit: str = "bytes") -> Contents:
    """Return what a file holds that should have so many bytes, or more."""
    problem = f"expected {expected} {unit}, found {found}: the file is cut off"
    return Contents(problem) if found < expected else Contents()


def another_from(position: int) -> str:
    """Say what is wrong with recordings that were joined in a way that the format does not know."""
    return f"expected one recording, found another one from byte {position} on"


def inspect_mp3(stream: BinaryIO, start: int, found: int) -> Contents:
    """Compare the frames that a tag in the first of them states, and libsndfile reads, with those that there are.

    Files of other kinds are taken for whole.
    """
    head = _read_at(stream, start, 1 << 16)
    first = _next_mp3_frame(head, 0)
    if first > min(_MP3_START_BYTES, len(head) - 3):
        return Contents()
    tag = _MP3_TAG.search(head, first, first + _MP3_TAG_REACH)
    if not tag or not tag[1][0] & 1:
        return Contents()
    stated = int.from_bytes(tag[2], "big")
    num_frames, end = _count_mp3_frames(stream, start + first, found)
    num_frames -= 1  # that of the tag
    stated_bytes = int.from_bytes(tag[3], "big") if tag[1][0] & 2 else 0
    stated_end = start + first + stated_bytes if stated_bytes else found
    if stated > num_frames and stated_end > found:
        return cut_off(stated, num_frames, "frames")
    if stated in (num_frames, num_frames + 1):  # some count the frame of the tag
        return Contents(has_true_mp3_tag=True)
    if stated > num_frames and not stated_bytes:
        return cut_off(stated, num_frames, "frames")
    truth = num_frames.to_bytes(4, "big") + (found - start - first).to_bytes(8, "big")[4:]
    patches = [(start + tag.start(2), truth[: 8 if tag[1][0] & 2 else 4])]
    padding = tag.start() + _MP3_PADDING_AT
    if stated_end < end and len(head) > padding + 1:
        patches.append((start + padding, bytes((head[padding] & 0xF0, 0))))  # of the first of several recordings
    return Contents(has_true_mp3_tag=True, patches=tuple(patches))


def begins_with_mp3(head: bytes) -> bool:
    """Return whether frames of MP3 follow each other from the first of these bytes on."""
    return len(head) > 2 and _next_mp3_frame(head, 0) == 0


def _count_mp3_frames(stream: BinaryIO, position: int, found: int) -> tuple[int, int]:
    """Count the whole frames of a file from a position on, across what is between them; and find their end."""
    frame_bytes = _mp3_frame_bytes()
    num_frames = end = 0
    while position < found:
        block = _read_at(stream, position, _BLOCK_BYTES)
        at, last, size = 0, len(block) - 2, 0
        while at < last:
            size = frame_bytes[block[at + 1] << 8 | block[at + 2]]
            if size:
                num_frames += 1
                at += size
            else:
                end = position + at if at else end
                at = _next_mp3_frame(block, at + 1)
        if size:
            end = position + at
        position += max(at, 3)
    return num_frames - (end > found), end


def _next_mp3_frame(block: bytes, start: int) -> int:
    """Find where frames follow each other again; where the block ends, the next one decides."""
    frame_bytes = _mp3_frame_bytes()
    for match in _MP3_FRAME.finditer(block, start):
        at = match.start()
        for _ in range(_MP3_CHAIN):
            size = frame_bytes[block[at + 1] << 8 | block[at + 2]] if block[at] == 0xFF else 0
            at += size
            if not size or at + 2 >= len(block):
                break
        if size and (at <= len(block) or len(block) == _BLOCK_BYTES):
            return match.start()
    return len(block) - 2


@cache
def _mp3_frame_bytes() -> list[int]:
    """Return the size of a frame by its second and third byte; 0 where there is no such frame of layer III."""
    table = [0] * (1 << 16)
    for version, halvings in ((3, 0), (2, 1), (0, 2)):  # MPEG 1, 2, 2.5
        samples_by_byte = 144 if version == 3 else 72
        for rate, sample_rate in enumerate((44_100, 48_000, 32_000)):
            for kbits_at, kbits in enumerate(_MP3_KBITS[version != 3]):
                for rest in range(8) if kbits else ():  # check sum, padding, private bit
                    head = 0xE200 | version << 11 | (rest & 1) << 8 | kbits_at << 4 | rate << 2 | rest >> 1
                    size = samples_by_byte * kbits * 1000 // (sample_rate >> halvings)
                    table[head] = size + (head >> 1 & 1)
    return table


def inspect_ogg(stream: BinaryIO, found: int) -> Contents:
    """Find the end of the last page, and whether it belongs to the first recording, the only one that libsndfile reads.

    Recordings may follow each other, each with pages of a number of its own.
    """
    tail_start = stream.seek(max(0, found - _OGG_PAGE_BYTES))
    tail = stream.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return Contents()
    end = tail_start + at + _page_bytes(tail[at:])
    if end > found:
        return cut_off(end, found)
    position, numbers = 0, set[bytes]()
    while position < found:
        stream.seek(position)
        page = stream.read(_OGG_HEAD_BYTES + 255)
        if page[:4] != b"OggS" or not page[5] & _OGG_FIRST:
            break
        numbers.add(page[14:18])
        position += _page_bytes(page)
    is_ended = tail[at + 5] & _OGG_LAST
    remark = None if is_ended else "the end mark is missing, so the recording may have been longer"
    return Contents(remark=remark, is_for_libsndfile=tail[at + 14 : at + 18] in numbers)


def _page_bytes(page: bytes) -> int:
    num_segments = page[_OGG_HEAD_BYTES - 1] if len(page) >= _OGG_HEAD_BYTES else 0
    return _OGG_HEAD_BYTES + num_segments + sum(page[_OGG_HEAD_BYTES : _OGG_HEAD_BYTES + num_segments])


def inspect_flac(stream: BinaryIO, head: bytes, found: int) -> Contents:
    """Compare the stated number of samples, which libsndfile reads, with where the last frame ends."""
    stated = int.from_bytes(head[18:26], "big") & (1 << 36) - 1
    block_samples, largest = int.from_bytes(head[8:10], "big"), int.from_bytes(head[15:18], "big")
    stream.seek(max(0, found - (largest or _FLAC_TAIL_BYTES) - 4096))
    tail = stream.read()
    ends = [
        _flac_frame_end(tail[match.start() : match.start() + 16], block_samples)
        for match in re.finditer(rb"\xff[\xf8\xf9]", tail)
    ]
    return Contents(is_for_libsndfile=not stated or stated in ends or max(ends, default=0) < stated)


def _flac_frame_end(frame: bytes, block_samples: int) -> int:
    """Return the number of the sample behind a frame; 0 if it is none.

    https://www.rfc-editor.org/rfc/rfc9639#name-frame-header
    """
    if len(frame) < 16 or frame[3] & 1 or frame[3] >> 4 > 10:
        return 0
    num_bytes = max(1, 8 - (frame[4] ^ 0xFF).bit_length())  # of a number, coded as a character in UTF-8
    number = frame[4] & (0x7F >> num_bytes if num_bytes > 1 else 0x7F)
    for byte in frame[5 : 4 + num_bytes]:
        number = number << 6 | byte & 0x3F
    at, size, rate = 4 + num_bytes, frame[2] >> 4, frame[2] & 15
    if size in (6, 7):
        num_samples = int.from_bytes(frame[at : at + size - 5], "big") + 1
        at += size - 5
    else:
        num_samples = (0, 192, 576, 1152, 2304, 4608)[size] if size < 6 else 256 << size - 8
    at += (0, 1, 2, 2)[max(rate - 11, 0)] if rate < 15 else 16
    check = 0
    for byte in frame[:at]:
        check ^= byte
        for _ in range(8):
            check = check << 1 ^ (0x107 if check & 0x80 else 0)
    first = number if frame[1] & 1 else number * block_samples
    return first + num_samples if num_samples and at < 16 and check == frame[at] else 0


def find_another(stream: BinaryIO) -> str | None:
    """Look for a recording behind the first one in Ogg and FLAC that libsndfile reads; all of the file is read."""
    stream.seek(0)
    head = stream.read(4)
    if head == b"OggS":
        position, is_first = 0, True
        while len(page := _read_at(stream, position)) >= _OGG_HEAD_BYTES and page[:4] == b"OggS":
            if page[5] & _OGG_FIRST and not is_first:
                return another_from(position)
            is_first = bool(page[5] & _OGG_FIRST)
            position += _page_bytes(page)
    elif head == b"fLaC":
        position = len(head)
        while len(block := _read_at(stream, position, 1 << 16)) >= len(_FLAC_STREAM):
            if (at := block.rfind(_FLAC_STREAM)) >= 0:  # twice as fast as find
                return another_from(position + at)
            position += len(block) - len(_FLAC_STREAM) + 1
    return None


def _read_at(stream: BinaryIO, position: int, num_bytes: int = _OGG_HEAD_BYTES + 255) -> bytes:
    stream.seek(position)
    return stream.read(num_bytes)
