"""Word and character error rates (by jiwer), with confusions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer

from speechssl.data.normalize import lower_case, normalize_labels

Edit = Literal["substitution", "deletion", "insertion"]


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """The edits that turn references into hypotheses, in words or in characters."""

    substitutions: int
    deletions: int
    insertions: int
    reference_length: int

    @property
    def total(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits over the reference length; over 1 if there is no reference, so that insertions still count."""
        return self.total / max(self.reference_length, 1)


@dataclass(frozen=True, slots=True)
class Confusion:
    """One kind of mistake: ``reference`` is empty for an insertion, ``hypothesis`` for a deletion."""

    edit: Edit
    reference: str
    hypothesis: str
    count: int


@dataclass(frozen=True, slots=True)
class UtteranceScore:
    """One utterance as it was scored, both texts normalized."""

    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts


@dataclass(frozen=True)
class Score:
    """The scores of a system on a set of utterances."""

    utterances: tuple[UtteranceScore, ...]
    words: ErrorCounts  # of all utterances
    characters: ErrorCounts  # of all; the space between words is a character
    word_confusions: tuple[Confusion, ...]  # the most frequent first
    character_confusions: tuple[Confusion, ...]
    word_matches: tuple[tuple[bool, ...], ...]  # by utterance, whether each word heard is the word said
    character_matches: tuple[tuple[bool, ...], ...]  # likewise

    @property
    def wer(self) -> float:
        """Word error rate of the whole: sum of edits over sum of reference words."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Character error rate of the whole: sum of edits over sum of reference characters."""
        return self.characters.rate

    @property
    def word_counts(self) -> tuple[ErrorCounts, ...]:
        """Word edits by utterance."""
        return tuple(utterance.words for utterance in self.utterances)

    @property
    def character_counts(self) -> tuple[ErrorCounts, ...]:
        """Character edits by utterance."""
        return tuple(utterance.characters for utterance in self.utterances)


def normalize_for_scoring(text: str, language: str | None = None, *, words_only: bool = False) -> str:
    """Return the form in which texts are compared: lower case, Unicode NFC, single spaces, none at the ends.

    With ``words_only`` it is that of `normalize_labels`: without punctuation, and with one kind of apostrophe.
    """
    return normalize_labels(text, language) if words_only else " ".join(lower_case(text, language).split())


def describe_normalization(words_only: bool, languages: Iterable[str | None] = ()) -> str:
    """Return in a few words how texts are compared, for a row of results."""
    codes = ", ".join(sorted({language for language in languages if language}))
    return ("words without punctuation" if words_only else "lower case") + (f" ({codes})" if codes else "")


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    languages: Sequence[str | None] | None = None,
    *,
    words_only: bool = False,
) -> Score:
    """Score hypotheses against references, both normalized first, each pair in its language.

    An empty reference is allowed: every word of its hypothesis is an insertion.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"expected as many hypotheses as references ({len(references)}), found {len(hypotheses)}")
    references, hypotheses = (
        [
            normalize_for_scoring(text, language, words_only=words_only)
            for text, language in zip(texts, languages or [None] * len(texts), strict=True)
        ]
        for texts in (references, hypotheses)
    )
    words, word_confusions, word_matches = _count(jiwer.process_words(references, hypotheses))
    characters, character_confusions, matches = _count(jiwer.process_characters(references, hypotheses))
    return Score(
        tuple(map(UtteranceScore, references, hypotheses, words, characters)),
        sum_counts(words),
        sum_counts(characters),
        word_confusions,
        character_confusions,
        word_matches,
        matches,
    )


def _count(
    output: jiwer.WordOutput | jiwer.CharacterOutput,
) -> tuple[list[ErrorCounts], tuple[Confusion, ...], tuple[tuple[bool, ...], ...]]:
    """Edits by utterance, all confusions and what was heard as it was said, from jiwer's alignments."""
    counts: list[ErrorCounts] = []
    matches: list[tuple[bool, ...]] = []
    confusions: Counter[tuple[Edit, str, str]] = Counter()
    for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        edits: Counter[str] = Counter()
        for chunk in chunks:
            before = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            after = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "substitute":
                confusions.update(("substitution", *pair) for pair in zip(before, after, strict=True))
            elif chunk.type == "delete":
                confusions.update(("deletion", symbol, "") for symbol in before)
            elif chunk.type == "insert":
                confusions.update(("insertion", "", symbol) for symbol in after)
            edits[chunk.type] += max(len(before), len(after))
        counts.append(ErrorCounts(edits["substitute"], edits["delete"], edits["insert"], len(reference)))
        lengths = ((chunk.type == "equal", chunk.hyp_end_idx - chunk.hyp_start_idx) for chunk in chunks)
        matches.append(tuple(is_equal for is_equal, length in lengths for _ in range(length)))
    # Ties in the order of the texts, so that equal inputs give equal reports.
    ranked = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
    return counts, tuple(Confusion(*mistake, count) for mistake, count in ranked), tuple(matches)


def sum_counts(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    """Return the edits of all."""
    return ErrorCounts(
        sum(count.substitutions for count in counts),
        sum(count.deletions for count in counts),
        sum(count.insertions for count in counts),
        sum(count.reference_length for count in counts),
    )
