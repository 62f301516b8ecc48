"""An alignment as text: JSON, CTM, Praat's TextGrid, subtitles."""

import json
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum

from speechssl.decode.words import Word, join_words
from speechssl.transcribe.align import Alignment, Status
from speechssl.transcribe.transcript import Transcript

Interval = tuple[float, float, str]


class AlignmentFormat(StrEnum):
    """What is written of an alignment."""

    JSON = "json"
    CTM = "ctm"
    TEXTGRID = "textgrid"
    SRT = "srt"

    @property
    def extension(self) -> str:
        """Of its files; Praat's is TextGrid."""
        return "TextGrid" if self is AlignmentFormat.TEXTGRID else str(self)

    @property
    def holds_several(self) -> bool:
        """Whether one file may hold several recordings."""
        return self in (AlignmentFormat.JSON, AlignmentFormat.CTM)


def format_alignment(alignment: Alignment, output_format: AlignmentFormat, path: str, name: str) -> str:
    """Return an alignment as text; ``path`` and ``name`` are those of the recording."""
    match output_format:
        case AlignmentFormat.JSON:
            return json.dumps(alignment.to_dict(path), ensure_ascii=False) + "\n"
        case AlignmentFormat.CTM:
            return "".join(_ctm_lines(alignment, name))
        case AlignmentFormat.TEXTGRID:
            return _text_grid(alignment)
        case AlignmentFormat.SRT:
            return to_transcript(alignment).to_srt()


def ctm_name(name: str) -> str:
    """Return what a CTM calls a recording: fields have no spaces."""
    return re.sub(r"\s+", "_", name)


def to_transcript(alignment: Alignment) -> Transcript:
    """Return the words of the text that are said, as a transcript."""
    words = tuple(Word(text, start, end, confidence) for text, start, end, confidence in _said(alignment))
    return Transcript(join_words(words), alignment.seconds, words)


def _said(alignment: Alignment) -> Iterator[tuple[str, float, float, float]]:
    for word in alignment.words:
        if word.status is not Status.NOT_IN_TEXT and word.letters:
            assert word.start is not None
            assert word.end is not None
            assert word.confidence is not None
            yield word.text, word.start, word.end, word.confidence


def _ctm_lines(alignment: Alignment, name: str) -> Iterator[str]:
    """A line a word: recording, channel, start and duration in seconds, word, confidence; fields have no spaces."""
    for text, start, end, confidence in _said(alignment):
        fields = ctm_name(name), "1", f"{start:.3f}", f"{end - start:.3f}", re.sub(r"\s+", "_", text)
        yield f"{' '.join(fields)} {confidence:.4f}\n"


def _text_grid(alignment: Alignment) -> str:
    """Tiers of words, of letters and of what the text lacks; words that are not said have no time and are left out."""
    said = [word for word in alignment.words if word.letters and word.status is not Status.NOT_IN_TEXT]
    other = [word for word in alignment.words if word.status is Status.NOT_IN_TEXT]
    tiers: dict[str, list[Interval]] = {
        "words": [(word.start or 0.0, word.end or 0.0, word.text) for word in said],
        "letters": [(letter.start, letter.end, letter.text) for word in said for letter in word.letters],
        "not in text": [(word.start or 0.0, word.end or 0.0, word.text) for word in other],
    }
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {alignment.seconds:.6f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, intervals) in enumerate(tiers.items()):
        filled = list(_filled(intervals, alignment.seconds))
        lines += [
            f"    item [{number + 1}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {alignment.seconds:.6f}",
            f"        intervals: size = {len(filled)}",
        ]
        for position, (start, end, text) in enumerate(filled):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{position + 1}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {end:.6f}",
                f'            text = "{quoted}"',
            ]
    return "\n".join(lines) + "\n"


def _filled(intervals: Iterable[Interval], seconds: float) -> Iterator[Interval]:
    """Fill gaps and cut overlaps, as Praat wants intervals; what has no length is left out."""
    reached = 0.0
    for start, end, text in intervals:
        start, end = max(start, reached), min(end, seconds)
        if round(end - start, 6) <= 0:
            continue
        if round(start - reached, 6) > 0:
            yield reached, start, ""
        else:
            start = reached
        yield start, end, text
        reached = end
    if round(seconds - reached, 6) > 0:
        yield reached, seconds, ""
