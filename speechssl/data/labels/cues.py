"""Labels with times in lines of text: subtitles (SRT, WebVTT) and Audacity's label tracks."""

import html
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from speechssl.data.labels.label import (
    Drop,
    Label,
    UnusableError,
    drop_unusable,
    make_span,
    parse_seconds,
    shorten,
    single_spaced,
    split_lines,
)

_TIMES = re.compile(r"\s*(\S+)\s*-->\s*(\S+).*")
_TAG = re.compile(r"</?[A-Za-z0-9.:][^<>]*>|\{\\[^{}]*\}")
_BREAK = re.compile(r"<br */?>|\\[Nn]", re.IGNORECASE)
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s+([^<>]+)>")
_VTT_BLOCKS = ("WEBVTT", "NOTE", "STYLE", "REGION")
_AUDACITY = re.compile(r"[0-9][0-9.,]*\t[0-9][0-9.,]*(\t.*)?")


def read_subtitles(file: Path, content: str, paths: tuple[str, ...], drop: Drop) -> Iterator[Label]:
    """Read the cues of SRT or WebVTT, without their markup; a voice tag names the speaker."""
    lines = split_lines(content)
    is_vtt = content.lstrip().startswith("WEBVTT")
    number, is_block = 0, False
    while number < len(lines):
        line, where = lines[number], f"{file}:{number + 1}"
        number += 1
        if "-->" not in line:
            is_block = bool(line.strip()) and (is_block or (is_vtt and line.startswith(_VTT_BLOCKS)))
            is_name = number < len(lines) and "-->" in lines[number]  # a number in SRT
            if line.strip() and not is_block and not is_name:
                drop("text without times", f"{where}: {shorten(line)}")
            continue
        said = []
        while number < len(lines) and lines[number].strip() and "-->" not in lines[number]:
            said.append(lines[number])
            number += 1
        if number < len(lines) and "-->" in lines[number] and said:
            del said[-1]  # the number of a cue that no empty line parts from this one
        yield from drop_unusable(drop, where, partial(_make_cue, where, paths, line, "\n".join(said)))


def is_audacity(content: str) -> bool:
    """Tell by its first line whether a text is a label track."""
    return bool(_AUDACITY.fullmatch(next((line for line in split_lines(content) if line.strip()), "")))


def read_audacity(file: Path, content: str, paths: tuple[str, ...], drop: Drop) -> Iterator[Label]:
    """Read a label track: start, end and text between tabs. Lines with frequencies are skipped."""
    for number, line in enumerate(split_lines(content), 1):
        where = f"{file}:{number}"
        if not line.strip() or line.startswith("\\"):
            continue
        if _AUDACITY.fullmatch(line):
            start, end, *text = line.split("\t", maxsplit=2)
            yield from drop_unusable(drop, where, partial(_make_timed, where, paths, start, end, "".join(text)))
        else:
            drop("line that cannot be parsed", f"{where}: {shorten(line)}")


def _make_cue(where: str, paths: tuple[str, ...], times: str, text: str) -> Label:
    found = _TIMES.fullmatch(times)
    if found is None:
        raise UnusableError("times that make no span")
    voices = {single_spaced(html.unescape(voice)) for voice in _VOICE.findall(text)}
    plain = html.unescape(_TAG.sub("", _BREAK.sub(" ", text)))
    return _make_timed(where, paths, found[1], found[2], plain, voices.pop() if len(voices) == 1 else None)


def _make_timed(
    where: str, paths: tuple[str, ...], start: str, end: str, text: str, speaker: str | None = None
) -> Label:
    first, last = parse_seconds(start, has_decimal_comma=True), parse_seconds(end, has_decimal_comma=True)
    return make_span(where, paths, single_spaced(text), first or 0.0, last, speaker)
