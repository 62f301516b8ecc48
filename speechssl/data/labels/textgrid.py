"""Praat's TextGrid files, in the long and the short form."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from speechssl.data.labels.label import read_content
from speechssl.data.labels.tiers import Span, Tier
from speechssl.errors import ManifestError

# All that Praat itself reads: quoted texts, numbers that stand alone, and flags; the words between are for people.
_TOKEN = re.compile(r'"(?:[^"]|"")*"|(?<!\S)[-+]?[0-9][0-9.eE+-]*(?!\S)|<\w+>')

Token = tuple[str, int]
"""What stands there, and its line."""


def read_textgrid(file: Path) -> list[Tier]:
    """Return the tiers of intervals, and those of points without a length.

    Raises:
        ManifestError: the file cannot be read or is of another kind.
    """
    content = read_content(file)
    breaks = [match.start() for match in re.finditer("\n", content)]
    tokens = ((match[0], bisect_right(breaks, match.start()) + 1) for match in _TOKEN.finditer(content))
    try:
        if not content.startswith("File type") or not next(tokens)[0].startswith('"ooTextFile'):
            raise ValueError("found another kind of file")
        if next(tokens)[0] != '"TextGrid"':
            raise ValueError("found another kind of object")
        _skip(tokens, 2)
        if next(tokens)[0] != "<exists>":
            raise ValueError("found no tiers")
        return [_read_tier(file, tokens) for _ in range(int(next(tokens)[0]))]
    except StopIteration:
        raise ManifestError(f"{file}: expected a TextGrid, found one that is cut off") from None
    except ValueError as error:
        raise ManifestError(f"{file}: expected a TextGrid: {error}") from None


def _read_tier(file: Path, tokens: Iterator[Token]) -> Tier:
    kind, name = _text(next(tokens)), _text(next(tokens))
    _skip(tokens, 2)
    spans = []
    for _ in range(int(next(tokens)[0])):
        start, line = next(tokens)
        end = start if kind == "TextTier" else next(tokens)[0]
        spans.append(Span(f"{file}:{line}", _text(next(tokens)), float(start), float(end)))
    speaker = name.rpartition(" - ")[0] or name.partition("@")[2] or None
    return Tier(name, spans, speaker=speaker, is_independent=kind != "TextTier")


def _text(token: Token) -> str:
    written, line = token
    if not written.startswith('"'):
        raise ValueError(f"found {written} for a text in line {line}")
    return written[1:-1].replace('""', '"')


def _skip(tokens: Iterator[Token], number: int) -> None:
    for _ in range(number):
        next(tokens)
