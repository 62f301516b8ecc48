"""What files state about their own length, where libsndfile and FFmpeg guess without a word."""

import os
from typing import BinaryIO, Literal

_UNKNOWN_SIZES = {4: 0x7EFF0000, 8: 1 << 62}  # programs that write to a pipe put this much or more for "until the end"
_OGG_PAGE_BYTES = 65_307  # at most
_OGG_PAGE_HEADER_BYTES = 27
_MATROSKA, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MP4_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_MP4_NEEDED = (b"moov", b"moof", b"mdat")

_Order = Literal["big", "little"]


def expected_bytes(stream: BinaryIO) -> int:
    """Return the size that a file states, or the size that it has if it states none.

    WAV, RF64, W64, AIFF, AU, CAF, Ogg, MP4 and Matroska state one, unless they were written to a pipe.
    """
    found = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    stated = _stated_bytes(stream, stream.read(32), found)
    return found if stated is None else stated


def _stated_bytes(stream: BinaryIO, head: bytes, found: int) -> int | None:
    kind = head[:4]
    # The sizes of RIFF, RF64 and FORM (AIFF) leave out 8 bytes of the head, which some programs count all the same.
    if kind == b"RIFF":
        return _size(head[4:8], "little")
    if kind in (b"RIFX", b"FORM"):
        return _size(head[4:8], "big")
    if kind in (b"RF64", b"BW64") and head[12:16] == b"ds64":
        return _size(head[20:28], "little")
    if kind == b"riff":  # W64, whose last chunk may be without the up to 7 bytes that fill it up
        size = _size(head[16:24], "little")
        return None if size is None else size - 7
    if kind in (b".snd", b"dns."):  # AU
        order: _Order = "big" if kind == b".snd" else "little"
        size = _size(head[8:12], order)
        return None if size is None else int.from_bytes(head[4:8], order) + size
    if kind == b"caff":
        return _end_of_caf_data(stream, found)
    if kind == b"OggS":
        return _end_of_ogg(stream, found)
    if kind == _MATROSKA:
        return _end_of_matroska(stream)
    if head[4:8] in _MP4_STARTS:
        return _end_of_mp4(stream, found)
    return None


def _size(field: bytes, order: _Order) -> int | None:
    size = int.from_bytes(field, order)
    return size if size < _UNKNOWN_SIZES.get(len(field), 0) else None


def _end_of_caf_data(stream: BinaryIO, found: int) -> int | None:
    position, kind = 8, b""
    while position < found and kind != b"data":
        stream.seek(position)
        head = stream.read(12)
        kind, size = head[:4], int.from_bytes(head[4:], "big", signed=True)
        if size < 0:
            return None
        position += len(head) + size
    return position


def _end_of_ogg(stream: BinaryIO, found: int) -> int | None:
    tail_start = stream.seek(max(0, found - _OGG_PAGE_BYTES))
    tail = stream.read()
    page = tail.rfind(b"OggS")
    segments_start = page + _OGG_PAGE_HEADER_BYTES
    if 0 <= page < segments_start <= len(tail):
        num_segments = tail[segments_start - 1]
        segments = tail[segments_start : segments_start + num_segments]
        return tail_start + segments_start + num_segments + sum(segments)
    return None if page < 0 else tail_start + segments_start


def _end_of_matroska(stream: BinaryIO) -> int | None:
    stream.seek(len(_MATROSKA))
    head_bytes = _matroska_size(stream)
    if head_bytes is None:
        return None
    stream.seek(head_bytes, os.SEEK_CUR)
    if stream.read(len(_MATROSKA_SEGMENT)) != _MATROSKA_SEGMENT:
        return None
    size = _matroska_size(stream)
    return None if size is None else stream.tell() + size


def _matroska_size(stream: BinaryIO) -> int | None:
    """Read a number whose leading zeros tell how many bytes it has; all ones mean unknown."""
    first = stream.read(1)
    if first in (b"", b"\0"):
        return None
    num_bytes = 9 - first[0].bit_length()
    ones = (1 << 7 * num_bytes) - 1
    size = int.from_bytes(first + stream.read(num_bytes - 1), "big") & ones
    return None if size == ones else size


def _end_of_mp4(stream: BinaryIO, found: int) -> int:
    """Return the end of the last box that is needed; others, and what was appended to a file, may be cut."""
    position = end = 0
    while position < found:
        stream.seek(position)
        head = stream.read(16)
        kind, size = head[4:8], int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if kind in _MP4_NEEDED:
            end = position + size
        if size < 8:  # until the end of the file
            break
        position += size
    return end


def states_mp3_length(stream: BinaryIO) -> bool:
    """Return whether an MP3 file has the tag with its number of frames; without, libsndfile guesses by its size."""
    stream.seek(0)
    head = stream.read(10)
    tag_bytes = 0
    if head[:3] == b"ID3" and len(head) == 10:
        tag_bytes = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    stream.seek(tag_bytes)
    first_frame = stream.read(4096)
    return any(tag in first_frame for tag in (b"Xing", b"Info", b"VBRI"))
