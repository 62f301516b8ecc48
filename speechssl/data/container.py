"""What files state about their length, held against their bytes: libsndfile and FFmpeg believe it without a word."""

import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

from speechssl.data.packets import (
    Contents,
    another_from,
    begins_with_mp3,
    cut_off,
    inspect_flac,
    inspect_mp3,
    inspect_ogg,
)
from speechssl.data.sources import File

_Order = Literal["big", "little"]

_UNKNOWN_SIZES = {4: 0x7EFF0000, 8: 1 << 62}  # programs that write to a pipe put this much or more for "until the end"
_JUNK_BYTES = 1024  # less, behind what a header covers, is no recording but what some program left
_MATROSKA, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MP4_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_OTHER_KINDS = rb"ID3|#!AMR|wvpk|MAC |TTA1|MPCK|MP\+|\x00\x00\x01\xba|G.{187}G|\xff[\xf0\xf1\xf8\xf9][\x40-\xbf]"
_MP4_NEEDED = (b"moov", b"moof", b"mdat")


def inspect(stream: BinaryIO) -> Contents:
    """Find out whether a file is whole, and whether libsndfile would read all of it.

    WAV, RF64, W64, AIFF, AU, CAF, SPHERE, VOC, Ogg, FLAC, tagged MP3, MP4, Matroska, ASF and FLV tell, unless they were
    written to a pipe.
    """
    found = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(4096)
    if head[:3] == b"ID3" and len(head) > 10:  # a tag before FLAC or MP3
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))  # of 7 bits each
        stream.seek(10 + size)
        head = stream.read(4096)
        return inspect_flac(stream, head, found) if head[:4] == b"fLaC" else inspect_mp3(stream, 10 + size, found)
    for magic, inspect_kind in _KINDS.items():
        if re.match(magic, head, re.DOTALL):
            return inspect_kind(stream, head, found)
    return inspect_mp3(stream, 0, found)


def begins_like_recording(head: bytes) -> bool:
    """Return whether these are the first bytes of a file of a kind that is known, rather than samples."""
    return any(re.match(magic, head, re.DOTALL) for magic in (*_KINDS, _OTHER_KINDS)) or begins_with_mp3(head)


def inspect_file(file: File) -> Contents:
    """Inspect what `open_source` found; what is known of a path is known until the file changes."""
    if isinstance(file, str):
        status = Path(file).stat()
        return _inspect_path(file, status.st_size, status.st_mtime_ns)
    with file.open() as stream:
        return inspect(stream)


@lru_cache(1 << 14)
def _inspect_path(path: str, size: int, modified: int) -> Contents:
    with Path(path).open("rb") as stream:
        return inspect(stream)


@dataclass(frozen=True)
class _Chunks:
    """How a format writes chunks: a name, a size and what it is the size of."""

    first: int  # where the first chunk begins
    order: _Order
    name_bytes: int = 4
    size_bytes: int = 4
    alignment: int = 2
    has_size_of_head: bool = False


def _inspect_chunks(stream: BinaryIO, found: int, chunks: _Chunks, ds64: bytes = b"") -> Contents:
    """Find the chunk of samples; all others may be missing, and the size of the whole file may be wrong."""
    head_bytes = chunks.name_bytes + chunks.size_bytes
    position = chunks.first
    while position + head_bytes <= found:
        stream.seek(position)
        head = stream.read(head_bytes)
        size_at, start = position + chunks.name_bytes, position + head_bytes
        size = int.from_bytes(head[chunks.name_bytes :], chunks.order)
        if head[:4] in (b"data", b"SSND", b"BODY"):
            size_bytes = chunks.size_bytes
            if ds64 and size == 0xFFFFFFFF:
                size_at, size_bytes, size = 28, 8, int.from_bytes(ds64[28:36], "little")
            return _inspect_samples(stream, found, chunks, start, size, (size_at, size_bytes))
        position = max(start, position + size if chunks.has_size_of_head else start + size)
        position += -position % chunks.alignment
    return cut_off(position, found)


def _inspect_samples(
    stream: BinaryIO, found: int, chunks: _Chunks, start: int, size: int, field: tuple[int, int]
) -> Contents:
    """Compare the size of the samples, stated in a field, with what there is: chunks may follow, and nothing else."""
    size_at, size_bytes = field
    if size >= _UNKNOWN_SIZES[size_bytes]:
        return Contents()
    head_bytes = chunks.name_bytes + chunks.size_bytes if chunks.has_size_of_head else 0
    size = max(0, size - head_bytes)
    if start + size > found:
        return cut_off(start + size, found)
    rest_at = start + size
    stream.seek(0)
    magic = stream.read(4)
    while rest_at + 8 <= found:
        rest_at += -rest_at % chunks.alignment
        stream.seek(rest_at)
        head = stream.read(chunks.name_bytes + chunks.size_bytes)
        if magic in head:  # some leave a byte between
            return Contents(another_from(rest_at + head.index(magic)))
        if not re.match(rb"[ -~]{4}", head):
            break
        following = int.from_bytes(head[chunks.name_bytes :], chunks.order)
        rest_at += max(following, len(head)) if chunks.has_size_of_head else len(head) + following
    rest = found - rest_at
    if rest < (_JUNK_BYTES if size else 1) or not _has_content(stream, rest_at):
        return Contents()
    # What wrote the header did not come to correct it when the recording ended.
    whole = found - start
    if whole + head_bytes >= _UNKNOWN_SIZES[size_bytes]:
        return Contents(f"expected the size of the samples in the header, found {size} bytes, and {whole} in the file")
    return Contents(
        remark=f"the header states {size} bytes of samples, {whole} are there and read",
        patches=((size_at, (whole + head_bytes).to_bytes(size_bytes, chunks.order)),),
    )


def _has_content(stream: BinaryIO, start: int) -> bool:
    stream.seek(start)
    while block := stream.read(1 << 16):
        if block.strip(b"\0"):
            return True
    return False


def _inspect_riff(stream: BinaryIO, head: bytes, found: int) -> Contents:
    order: _Order = "big" if head[:4] == b"RIFX" else "little"
    if head[8:12] == b"WAVE":
        return _inspect_chunks(stream, found, _Chunks(12, order), head if head[12:16] == b"ds64" else b"")
    size = int.from_bytes(head[4:8], order)  # without the 8 bytes before, which some programs count all the same
    return Contents() if size >= _UNKNOWN_SIZES[4] else cut_off(size, found)


def _inspect_au(stream: BinaryIO, head: bytes, found: int) -> Contents:
    order: _Order = "big" if head[:4] == b".snd" else "little"
    start, size = (int.from_bytes(head[at : at + 4], order) for at in (4, 8))
    return _inspect_samples(stream, found, _Chunks(0, order, alignment=1), start, size, (8, 4))


def _inspect_sphere(stream: BinaryIO, head: bytes, found: int) -> Contents:
    """Compare what libsndfile ignores: it reads until the end of the file."""
    fields = dict(re.findall(rb"^(\w+) -\w+ (\S+)", head[:1024].partition(b"end_head")[0], re.MULTILINE))
    if b"," in fields.get(b"sample_coding", b""):  # compressed
        return Contents()
    try:
        names = (b"sample_count", b"channel_count", b"sample_n_bytes")
        count, num_channels, num_bytes = (int(fields.get(name, b"1")) for name in names)
        end = int(head[8:16]) + (count * num_channels * num_bytes if b"sample_count" in fields else 0)
    except ValueError:
        return Contents()
    return _before_another(stream, end, found, b"NIST_1A")


def _inspect_voc(stream: BinaryIO, head: bytes, found: int) -> Contents:
    position, num_blocks, kind = int.from_bytes(head[20:22], "little"), 0, -1
    while position < found and kind:
        stream.seek(position)
        block = stream.read(4)
        kind = block[0]
        num_blocks += kind in (1, 2, 9)
        position += 4 + int.from_bytes(block[1:], "little") if kind else 1
    contents = _before_another(stream, position, found, b"Creative")
    return contents if contents.problem else Contents(is_for_libsndfile=num_blocks < 2)  # it reads one block


def _inspect_flv(stream: BinaryIO, head: bytes, found: int) -> Contents:
    position = 9
    while position + 15 <= found:
        stream.seek(position)
        tag = stream.read(15)  # what was before it in 4 bytes, its kind, its size in 3
        if tag[4:8] == b"FLV\1":
            return _before_another(stream, position + 4, found, b"FLV")
        if tag[4] not in (8, 9, 18):  # sound, picture, script
            break
        position += 15 + int.from_bytes(tag[5:8], "big")
    stated = re.search(rb"filesize\0(.{8})", head, re.DOTALL)
    if stated:
        (size,) = struct.unpack(">d", stated[1])
        position = max(position, int(size)) if size < 1 << 62 else position
    return cut_off(position, found)


def _inspect_asf(stream: BinaryIO, head: bytes, found: int) -> Contents:
    at = head.find(_ASF_PROPERTIES)
    properties = head[at : at + 92]
    if at < 0 or len(properties) < 92 or properties[88] & 1:  # being broadcast
        return Contents()
    return _before_another(stream, int.from_bytes(properties[40:48], "little"), found, _ASF)


def _before_another(stream: BinaryIO, end: int, found: int, magic: bytes) -> Contents:
    """Refuse a file that is cut off, or in which another one follows."""
    if end < found:
        stream.seek(end)
        if stream.read(len(magic)) == magic:
            return Contents(another_from(end))
    return cut_off(end, found)


def _inspect_matroska(stream: BinaryIO, head: bytes, found: int) -> Contents:
    stream.seek(len(_MATROSKA))
    head_bytes = _matroska_size(stream)
    if head_bytes is None:
        return Contents()
    stream.seek(head_bytes, os.SEEK_CUR)
    if stream.read(len(_MATROSKA_SEGMENT)) != _MATROSKA_SEGMENT:
        return Contents()
    size = _matroska_size(stream)
    return Contents() if size is None else cut_off(stream.tell() + size, found)


def _matroska_size(stream: BinaryIO) -> int | None:
    """Read a number whose leading zeros tell how many bytes it has; all ones mean unknown."""
    first = stream.read(1)
    if first in (b"", b"\0"):
        return None
    num_bytes = 9 - first[0].bit_length()
    ones = (1 << 7 * num_bytes) - 1
    size = int.from_bytes(first + stream.read(num_bytes - 1), "big") & ones
    return None if size == ones else size


def _inspect_mp4(stream: BinaryIO, head: bytes, found: int) -> Contents:
    """Find the end of the last box that is needed; others, and what was appended to a file, may be cut."""
    position = end = 0
    kinds: list[bytes] = []
    while position < found:
        stream.seek(position)
        box = stream.read(16)
        kind, size = box[4:8], int.from_bytes(box[:4], "big")
        if size == 1:
            size = int.from_bytes(box[8:], "big")
        if kind in _MP4_NEEDED:
            if kind == b"moov" and kind in kinds:
                return Contents(another_from(end))
            end = position + size
            kinds.append(kind)
        if size < 8:  # until the end of the file
            break
        position += size
    if end <= found and b"mdat" in kinds and b"moov" not in kinds:
        return Contents("expected an index (moov), found none: the recording was not finished")
    return cut_off(end, found)


_KINDS: dict[bytes, Callable[[BinaryIO, bytes, int], Contents]] = {
    rb"RIFF|RIFX|RF64|BW64": _inspect_riff,
    rb"FORM": lambda stream, _, found: _inspect_chunks(stream, found, _Chunks(12, "big")),
    rb"riff": lambda stream, _, found: _inspect_chunks(stream, found, _Chunks(40, "little", 16, 8, 8, True)),
    rb"caff": lambda stream, _, found: _inspect_chunks(stream, found, _Chunks(8, "big", 4, 8, 1)),
    rb"\.snd|dns\.": _inspect_au,
    rb"NIST_1A": _inspect_sphere,
    rb"Creative Voice File": _inspect_voc,
    rb"OggS": lambda stream, _, found: inspect_ogg(stream, found),
    rb"fLaC": inspect_flac,
    re.escape(_MATROSKA): _inspect_matroska,
    rb"FLV\x01": _inspect_flv,
    re.escape(_ASF): _inspect_asf,
    rb".{4}(?:" + b"|".join(_MP4_STARTS) + b")": _inspect_mp4,
}
