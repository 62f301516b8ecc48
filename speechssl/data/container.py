"""What WAV, Ogg and MP3 files say about their own length, where libsndfile takes a guess without a word."""

import os
from typing import BinaryIO

_UNKNOWN_RIFF_SIZE = 0x7FFF0000  # programs that write to a pipe put this much or more for "until the end"
_OGG_PAGE_BYTES = 65_307  # at most
_OGG_PAGE_HEADER_BYTES = 27


def expected_bytes(stream: BinaryIO) -> int:
    """The size that a WAV or Ogg file must have by its own account; the size it has if it gives no account."""
    found = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(8)
    if head[:4] == b"RIFF":
        # The size leaves out the 8 bytes of the head, which some programs count all the same.
        size = int.from_bytes(head[4:8], "little")
        return size if size < _UNKNOWN_RIFF_SIZE else found
    if head[:4] == b"OggS":
        tail_start = stream.seek(max(0, found - _OGG_PAGE_BYTES))
        tail = stream.read()
        page = tail.rfind(b"OggS")
        segments_start = page + _OGG_PAGE_HEADER_BYTES
        if 0 <= page < segments_start <= len(tail):
            num_segments = tail[segments_start - 1]
            segments = tail[segments_start : segments_start + num_segments]
            return tail_start + segments_start + num_segments + sum(segments)
        return found if page < 0 else tail_start + segments_start
    return found


def states_mp3_length(stream: BinaryIO) -> bool:
    """Whether an MP3 file has the tag with its number of frames; without it, the length is guessed from its size."""
    stream.seek(0)
    head = stream.read(10)
    tag_bytes = 0
    if head[:3] == b"ID3" and len(head) == 10:
        tag_bytes = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    stream.seek(tag_bytes)
    first_frame = stream.read(4096)
    return any(tag in first_frame for tag in (b"Xing", b"Info", b"VBRI"))
