"""An utterance -> the bytes of an audio file that has nothing else in it."""

import io
import re
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.data.audio import SAMPLE_RATE, Waveform, join, resample_blocks
from speechssl.data.decoder import Decoder, open_decoder
from speechssl.data.manifest import Utterance
from speechssl.data.paths import split_range
from speechssl.data.recording import audio_info, read_span
from speechssl.data.scan import AUDIO_SUFFIXES
from speechssl.data.sources import open_bytes, source_name, translated
from speechssl.errors import AudioError

Encoding = Literal["copy", "flac", "opus"]

_OGG_PAGE = re.compile(rb"OggS\0")
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Clip:
    """An audio file in memory."""

    content: bytes
    suffix: str  # without the dot
    num_samples: int
    sample_rate: int


def make_clip(utterance: Utterance, encoding: Encoding) -> Clip:
    """Return an utterance as an audio file of its own: the same utterance gives the same bytes.

    Args:
        utterance: A whole recording or a span of one.
        encoding: "copy" keeps the bytes of a whole recording, and makes FLAC of a span. "flac" makes mono FLAC at the
            recording's own rate, which reads as the recording does, sample for sample, if its samples have 24 bits or
            fewer; others (floats, lossy formats) are rounded to 16. "opus" makes Ogg Opus of 16 kHz.

    Raises:
        AudioError: the recording cannot be read or is not what the utterance says.
    """
    if encoding == "copy":
        info = audio_info(utterance.path)
        if info.sample_rate != utterance.sample_rate:
            expected, found = utterance.sample_rate, info.sample_rate
            name = source_name(utterance.path)
            raise AudioError(f"{name}: expected {expected} samples a second, found {found}")
        if not utterance.start and utterance.num_samples == info.num_samples:
            return _copy(utterance)
    samples, _ = read_span(utterance.path, utterance.start, utterance.num_samples, sample_rate=utterance.sample_rate)
    if encoding == "opus":
        samples = join(resample_blocks([samples], utterance.sample_rate))
        content = _with_fixed_number(_encode(samples, SAMPLE_RATE, "OGG", "OPUS"))
        return Clip(content, "opus", len(samples), SAMPLE_RATE)
    integers, subtype = _quantize(samples)
    content = _encode(integers, utterance.sample_rate, "FLAC", subtype)
    return Clip(content, "flac", len(samples), utterance.sample_rate)


def _copy(utterance: Utterance) -> Clip:
    name = source_name(utterance.path)
    with open_decoder(utterance.path, name) as reader:
        with translated(name), open_bytes(reader.file) as stream:
            content = stream.read()
        return Clip(content, _suffix(utterance.path, reader), utterance.num_samples, utterance.sample_rate)


def _suffix(path: str, reader: Decoder) -> str:
    """Return the recording's own suffix; for a part of an archive, that of its format."""
    suffix = "" if split_range(path) else PurePosixPath(path).suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return suffix[1:]
    kind = reader.content.format.lower() if isinstance(reader.content, soundfile.SoundFile) else ""
    return kind if f".{kind}" in AUDIO_SUFFIXES else "mka"  # a container of any codec, as PyAV reads


def _quantize(samples: Waveform) -> tuple[npt.NDArray[np.signedinteger[Any]], str]:
    """Return samples as integers of 16 bits, or of 24 if that is exact and 16 are not, and libsndfile's name of it.

    libsndfile itself would scale floats by 32767, not by the 32768 that it divides by.
    """
    values = samples.astype(np.float64)
    of_24_bits = values * (1 << 23)
    if (values * (1 << 15) % 1).any() and not (of_24_bits % 1).any():
        limit = 1 << 23
        return np.rint(of_24_bits).clip(-limit, limit - 1).astype(np.int32) << 8, "PCM_24"
    return np.rint(values * (1 << 15)).clip(-(1 << 15), (1 << 15) - 1).astype(np.int16), "PCM_16"


def _encode(samples: npt.NDArray[Any], sample_rate: int, kind: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, subtype, format=kind)
    return file.getvalue()


def _with_fixed_number(ogg: bytes) -> bytes:
    """Give the pages of one stream the number 1, where libsndfile draws one, so that all of the bytes are determined.

    https://www.rfc-editor.org/rfc/rfc3533#section-6
    """
    pages = []
    position = 0
    while position < len(ogg):
        assert _OGG_PAGE.match(ogg, position)
        num_segments = ogg[position + 26]
        end = position + 27 + num_segments + sum(ogg[position + 27 : position + 27 + num_segments])
        head = ogg[position : position + 14] + (1).to_bytes(4, "little") + ogg[position + 18 : position + 22]
        page = head + bytes(4) + ogg[position + 26 : end]
        # Ogg's check sum is zlib's with the bits of everything reversed, and without its inversions.
        check = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
        pages += [head, check.to_bytes(4, "big").translate(_REVERSED_BITS), page[26:]]
        position = end
    return b"".join(pages)
