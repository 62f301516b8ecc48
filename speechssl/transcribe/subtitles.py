"""Timed words -> cues that can be read on a screen -> SRT, WebVTT and TSV."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from wcwidth import iter_graphemes, width

from speechssl.decode.words import Word, join_words

LINE_WIDTH = 42  # columns: a Han character takes two, a combining mark none
CUE_SECONDS = (1.0, 7.0)
"""The shortest and the longest time that a cue is shown; it is shorter where the next one follows immediately."""

_TIMING_ARROW = "-->"


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown at one time."""

    start: int  # in milliseconds, as the end, which comes later and not after the next cue's start
    end: int
    lines: tuple[str, ...]  # one or two


def group_words(words: Sequence[Word], fits: Callable[[list[Word]], bool]) -> list[tuple[Word, ...]]:
    """Divide words into groups that fit, at pauses where there are any.

    Each group but the last ends at the longest pause in the later half of what would fit, at the last of several.

    Args:
        words: In time order.
        fits: Whether words may stay together; true of the first words of a group if true of all. A single word stays
            as it is.
    """
    groups: list[tuple[Word, ...]] = []
    group: list[Word] = []
    for word in words:
        # What is left over behind a pause can be too long for the next word as well.
        while group and not fits([*group, word]):
            pauses = [after.start - before.end for before, after in zip(group, [*group[1:], word], strict=True)]
            half = len(group) // 2
            end = max(range(half, len(group)), key=lambda index: (round(pauses[index], 3), index)) + 1
            groups.append(tuple(group[:end]))
            group = group[end:]
        group.append(word)
    return [*groups, tuple(group)] if group else groups


def shape_cues(groups: Sequence[Sequence[Word]], seconds: float) -> list[Cue]:
    """Make cues of words: at most two lines of 42 columns, from 1 to 7 seconds long, none overlapping.

    Args:
        groups: Words that may share a cue, in time order; what is too much for a cue becomes several.
        seconds: Length of the recording; no cue but one of a word at its very end is shown longer.
    """
    parts = [part for group in groups for part in group_words(list(_short_words(group)), _fits_a_cue)]
    shortest, longest = (round(1000 * limit) for limit in CUE_SECONDS)
    cues: list[Cue] = []
    starts = [round(1000 * part[0].start) for part in parts]
    for index, part in enumerate(parts):
        # Words of no length, or within a millisecond, still get a cue each.
        start = max(starts[index], cues[-1].end if cues else 0)
        limit = starts[index + 1] if index + 1 < len(parts) else round(1000 * seconds)
        end = max(round(1000 * part[-1].end), min(start + shortest, limit))
        cues.append(Cue(start, max(start + 1, min(end, start + longest)), _lines(part)))
    return cues


def format_srt(groups: Sequence[Sequence[Word]], seconds: float) -> str:
    """Write SubRip. It has no escapes, so the arrow between times cannot occur in a text and becomes →."""
    cues = [
        f"{number}\n{_clock(cue.start, ',')} {_TIMING_ARROW} {_clock(cue.end, ',')}\n"
        + "".join(line.replace(_TIMING_ARROW, "→") + "\n" for line in cue.lines)
        for number, cue in enumerate(shape_cues(groups, seconds), start=1)
    ]
    return "\n".join(cues)


def format_vtt(groups: Sequence[Sequence[Word]], seconds: float) -> str:
    """Write WebVTT (https://www.w3.org/TR/webvtt1/)."""
    cues = [
        f"\n{_clock(cue.start, '.')} {_TIMING_ARROW} {_clock(cue.end, '.')}\n"
        + "".join(line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") + "\n" for line in cue.lines)
        for cue in shape_cues(groups, seconds)
    ]
    return "".join(["WEBVTT\n", *cues])


def format_tsv(groups: Sequence[Sequence[Word]]) -> str:
    """Write a header, then a row for each group: start and end in milliseconds, and the text."""
    rows = [f"{round(1000 * group[0].start)}\t{round(1000 * group[-1].end)}\t{join_words(group)}\n" for group in groups]
    return "".join(["start\tend\ttext\n", *rows])


def _short_words(words: Sequence[Word]) -> Iterator[Word]:
    """Cut words wider than a line, between grapheme clusters, into lines that share their time evenly."""
    for word in words:
        lines = [""]
        for cluster in iter_graphemes(word.text):
            if lines[-1] and width(lines[-1] + cluster) > LINE_WIDTH:
                lines.append("")
            lines[-1] += cluster
        start, per_character = word.start, (word.end - word.start) / len(word.text)
        for number, line in enumerate(lines):
            end = start + len(line) * per_character
            yield Word(line, start, end, word.confidence, word.is_joined or number > 0)
            start = end


def _fits_a_cue(words: Sequence[Word]) -> bool:
    return words[-1].end - words[0].start <= CUE_SECONDS[1] and bool(_lines(words))


def _lines(words: Sequence[Word]) -> tuple[str, ...]:
    """Set the text on one line, or on two of lengths as equal as can be; return nothing if it does not fit."""
    spaces = [0 if word.is_joined else 1 for word in words]
    # Where each word ends, if all stand on one line.
    ends = list(accumulate((width(word.text) + space for word, space in zip(words, spaces, strict=True))))
    if ends[-1] - spaces[0] <= LINE_WIDTH or len(words) == 1:
        return (join_words(words),)

    def wider(second: int) -> int:
        return max(ends[second - 1] - spaces[0], ends[-1] - ends[second - 1] - spaces[second])

    best = min(range(1, len(words)), key=wider)
    return (join_words(words[:best]), join_words(words[best:])) if wider(best) <= LINE_WIDTH else ()


def _clock(milliseconds: int, decimal_mark: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal_mark}{milliseconds:03}"
