"""The pieces of a SentencePiece model, read from its file without the library."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.errors import CheckpointError

_PIECE, _TEXT, _KIND = 1, 1, 3  # numbers of fields: a piece of the model, the text and the kind of a piece
_NORMAL, _USER_DEFINED = 1, 4
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Pieces:
    """The texts of all pieces by their numbers, and which of them are no part of any text."""

    texts: tuple[str, ...]
    special: frozenset[str]


def read_pieces(file: Path) -> Pieces:
    """Read the pieces of a model.

    Raises:
        CheckpointError: the file cannot be read or is no such model.
    """
    try:
        fields = _fields(memoryview(file.read_bytes()))
        pieces = [dict(_fields(content)) for number, content in fields if number == _PIECE]
        texts = [bytes(piece[_TEXT]).decode("utf-8") for piece in pieces]
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise CheckpointError(f"{file}: expected a model of SentencePiece, found something else") from None
    kinds = [piece.get(_KIND, _NORMAL) for piece in pieces]
    special = {text for text, kind in zip(texts, kinds, strict=True) if kind not in (_NORMAL, _USER_DEFINED)}
    return Pieces(tuple(texts), frozenset(special))


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """The numbers and values of the fields of a message of Protocol Buffers."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(content, place)
            yield number, value
            continue
        size = {_FIXED_64: 8, _FIXED_32: 4}.get(kind)
        if kind == _BYTES:
            size, place = _varint(content, place)
        if size is None or place + size > len(content):
            raise ValueError
        yield number, content[place : place + size]
        place += size


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError
