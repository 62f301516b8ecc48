"""What was said in a recording, and when: words, segments and the formats they are written in."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from speechssl.decode.hypotheses import Hypothesis
from speechssl.decode.lattice import Lattice
from speechssl.decode.words import Word, join_words
from speechssl.transcribe.subtitles import format_srt, format_tsv, format_vtt, group_words

JSON_FORMAT, JSON_VERSION = "speechssl-transcript", 1
PAUSE_SECONDS = 0.6
"""Silence between two words that ends a segment."""
SEGMENT_SECONDS = 20.0
"""A segment is no longer than this, unless it is a single word."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Words without a long pause between them, at least one."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """Return the text of the words."""
        return join_words(self.words)

    @property
    def start(self) -> float:
        """Seconds from the start of the recording."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """Seconds from the start of the recording."""
        return self.words[-1].end

    def to_dict(self, letters: bool = False) -> dict[str, Any]:
        """Return the segment as plain JSON types, times to the millisecond."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "text": self.text,
            "words": [word.to_dict(letters) for word in self.words],
        }


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a recording that a beam search saw as a whole, and its likeliest texts, the best first."""

    start: float  # in seconds, as the end
    end: float
    texts: tuple[Hypothesis, ...]
    lattice: Lattice  # of all texts that the search kept and that are not hopeless

    def shifted(self, seconds: float) -> "Stretch":
        """Return it as said so much later."""
        lattice = self.lattice.mapped(lambda time: time + seconds)
        return Stretch(self.start + seconds, self.end + seconds, self.texts, lattice)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types, times to the millisecond."""
        texts = [text.to_dict() for text in self.texts]
        borders = {"start": round(self.start, 3), "end": round(self.end, 3)}
        return {**borders, "texts": texts, "lattice": self.lattice.to_dict()}


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording."""

    text: str  # of the words, which single spaces separate, except in scripts without spaces
    seconds: float  # length of the recording, or of its part up to the end that was asked for
    words: tuple[Word, ...] = ()
    is_calibrated: bool = False  # whether a word of confidence 0.8 is right in 80 of 100 cases
    nbest: tuple[Stretch, ...] = ()  # if they were asked for

    def __str__(self) -> str:
        return self.text

    @property
    def confidence(self) -> float | None:
        """The mean over the words, None without one: what share of them is right, if they are calibrated.

        Words that were said and not heard have none.
        """
        return sum(word.confidence for word in self.words) / len(self.words) if self.words else None

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Divide the words at pauses of ``PAUSE_SECONDS`` and so that none lasts over ``SEGMENT_SECONDS``."""
        return tuple(Segment(words) for phrase in self._phrases() for words in group_words(phrase, _is_short))

    def shifted(self, seconds: float) -> "Transcript":
        """Return the transcript as part of a recording, in which it starts at ``seconds``."""
        nbest = (found.shifted(seconds) for found in self.nbest)
        words = tuple(shift_words(self.words, seconds))
        return replace(self, seconds=self.seconds + seconds, words=words, nbest=tuple(nbest))

    def to_dict(self, path: str | None = None, letters: bool = False) -> dict[str, Any]:
        """Return the transcript as plain JSON types.

        ``format`` and ``version`` name this schema; the version is raised when a reader of the old one would go
        wrong, not when keys are added. Times are in seconds, to the millisecond::

            {"format": "speechssl-transcript", "version": 1, "path": ..., "seconds": ..., "text": ...,
             "confidence": ..., "confidences": "calibrated" or "uncalibrated",
             "segments": [{"start": ..., "end": ..., "text": ...,
                           "words": [{"start": ..., "end": ..., "text": ..., "confidence": ...}, ...]}, ...]}

        If the likeliest texts were asked for, ``"nbest"`` has those of each stretch that was searched as a whole, one
        unless the recording is long or was split at pauses. ``score`` is the sum of the others, in nats::

            "nbest": [{"start": ..., "end": ...,
                       "texts": [{"text": ..., "score": ..., "acoustic": ..., "lm": ...}, ...],
                       "lattice": {"nodes": [seconds, ...],
                                   "arcs": [{"source": 0, "target": 1, "text": ..., "start": ..., "end": ...,
                                             "acoustic": ..., "lm": ..., "posterior": ...}, ...]}}, ...]

        Arcs of the `Lattice` lead from one node to another, which are numbered from 0. Every path from the first node
        to the last is a text; ``posterior`` is the probability that a word is said there, before calibration.

        The confidence of the whole is null without words. Only those of words are calibrated, not those of letters. In
        scripts without spaces each letter is a word, with ``"joined": true`` if no space stands before it.

        Args:
            path: The recording, null if it has no name.
            letters: Whether each word has its ``"letters"`` too, the units of the model, with the keys of a word.
        """
        nbest = {"nbest": [found.to_dict() for found in self.nbest]} if self.nbest else {}
        return {
            "format": JSON_FORMAT,
            "version": JSON_VERSION,
            "path": path,
            "seconds": round(self.seconds, 3),
            "text": self.text,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "confidences": "calibrated" if self.is_calibrated else "uncalibrated",
            "segments": [segment.to_dict(letters) for segment in self.segments],
            **nbest,
        }

    def to_json(self, path: str | None = None, letters: bool = False) -> str:
        """Return what `to_dict` documents, on one line."""
        return json.dumps(self.to_dict(path, letters), ensure_ascii=False)

    def to_srt(self, words: bool = False) -> str:
        """Return SubRip subtitles; with ``words``, a cue for each word."""
        return format_srt(self._groups(words), self.seconds)

    def to_vtt(self, words: bool = False) -> str:
        """Return WebVTT subtitles; with ``words``, a cue for each word."""
        return format_vtt(self._groups(words), self.seconds)

    def to_tsv(self, words: bool = False) -> str:
        """Return a table of ``start``, ``end`` (milliseconds) and ``text`` of segments or, with ``words``, of words."""
        return format_tsv(self._groups(words))

    def _groups(self, words: bool) -> list[tuple[Word, ...]]:
        return [(word,) for word in self.words] if words else [segment.words for segment in self.segments]

    def _phrases(self) -> Iterator[list[Word]]:
        phrase: list[Word] = []
        for word in self.words:
            if phrase and word.start - phrase[-1].end >= PAUSE_SECONDS:
                yield phrase
                phrase = []
            phrase.append(word)
        if phrase:
            yield phrase


def shift_words(words: Iterable[Word], seconds: float) -> Iterator[Word]:
    """Yield words that are said so much later."""
    for word in words:
        letters = tuple(letter.shifted(seconds) for letter in word.letters)
        yield replace(word, start=word.start + seconds, end=word.end + seconds, letters=letters)


def _is_short(words: list[Word]) -> bool:
    return words[-1].end - words[0].start <= SEGMENT_SECONDS
