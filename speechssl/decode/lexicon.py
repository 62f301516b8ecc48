"""The words of a language model, spelled in the units of a CTC model."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from speechssl.data.units import WORD_DELIMITER, Units
from speechssl.decode.ngram import UNKNOWN, LanguageModel
from speechssl.errors import LanguageModelError

_NUM_LACKING = 8  # letters that are named


class Beginning:
    """The beginning of a word: a node in the tree of all words, made once a search comes there.

    ``word`` is what the language model calls it if it ends here, None as long as it has no letter. ``ahead`` is the
    score of the likeliest word that begins so, ``hope`` at least that of all beginnings with one more unit.
    ``longer`` has those that were made.
    """

    __slots__ = ("ahead", "hope", "letters", "longer", "word")

    def __init__(self, letters: str, word: str | None, ahead: float, hope: float) -> None:
        self.letters, self.word, self.ahead, self.hope = letters, word, ahead, hope
        self.longer: dict[int, Beginning] = {}


class Lexicon:
    """How the words of a language model are spelled.

    Attributes:
        letters: What each unit adds to the word under way.
        begins: Whether each unit begins a word.
        spelled: Words as the units write them, perhaps in capitals, and as the language model does.
        scores: Of the likeliest words that begin so, by letters; ``unknown`` of one that the model does not know.
        unit_words: What each unit is in a language model of letters.
        is_of_letters: Whether each letter is a word of the language model, and `WORD_DELIMITER` what stands between
            the words of a text.
    """

    def __init__(self, model: LanguageModel, units: Units, where: Path) -> None:
        words = model.words
        self.is_of_letters = WORD_DELIMITER in words and all(len(word) == 1 for word in words)
        self.letters = [_added(units, unit) for unit in range(len(units))]
        self.begins = [units.word_starts([unit, unit])[1] for unit in range(len(units))]
        if self.is_of_letters:
            words -= {WORD_DELIMITER}
            if found := next((letters for letters in self.letters if len(letters) > 1), None):
                raise LanguageModelError(
                    f"{where}: a language model of letters needs a CTC model of letters, found the unit {found!r}"
                )
        elif units.delimiter_id is None and not any(self.begins):
            raise LanguageModelError(
                f"{where}: a language model of words needs a CTC model with a unit that ends a word, such as '|', "
                f"found none among its {len(units)}"
            )
        self.spelled: dict[str, str] = {}
        self.unknown = model.score((), UNKNOWN)
        self.scores: dict[str, float] = {}
        lacking: Counter[str] = Counter()
        num_unspelled = 0
        for word in sorted(words, key=lambda word: model.score((), word)):
            unknown = units.unknown_characters(word)
            if unknown or word.split() != [word]:
                lacking.update(unknown)
                num_unspelled += 1
                continue
            labels = units.encode(word)
            if sum(units.word_starts(labels)) > 1:  # a word of letters, where each unit is a word
                num_unspelled += 1
                continue
            letters = "".join(self.letters[unit] for unit in labels)
            self.spelled[letters] = word  # the likeliest of those with one spelling
            score = model.score((), word)
            for beginning in accumulate(letters):  # other units than these may spell the word as well
                self.scores[beginning] = max(score, self.scores.get(beginning, -math.inf))
        self.unit_words = [self.spelled.get(letters, UNKNOWN) for letters in self.letters]
        if units.delimiter_id is not None:
            self.unit_words[units.delimiter_id] = WORD_DELIMITER
        if not self.spelled:
            example = min(words, default="no word")
            raise LanguageModelError(
                f"{where}: expected words of the model's letters {''.join(self.letters)!r:.80}, "
                f"found none of {len(words)}, such as {example!r:.40}"
            )
        if num_unspelled > len(words) / 2:
            named = ", ".join(f"{letter!r} in {number}" for letter, number in lacking.most_common(_NUM_LACKING))
            more = f" and {len(lacking) - _NUM_LACKING} others" if len(lacking) > _NUM_LACKING else ""
            warnings.warn(
                f"{where}: {num_unspelled} of {len(words)} words cannot be spelled with the model's "
                f"letters and are never found; it lacks {named}{more}",
                stacklevel=3,
            )

    def words_of(self, labels: Sequence[int], units: Units) -> list[str]:
        """Return the words of the language model that labels spell."""
        if self.is_of_letters:
            return [self.unit_words[unit] for unit in labels]
        return [self.spelled.get(word, UNKNOWN) for word in units.decode(labels).split()]


class WordTree:
    """The beginnings of all words, with the weights of a search; those that begin no word share one."""

    def __init__(self, lexicon: Lexicon, lm_weight: float, unknown_score: float) -> None:
        self._lexicon, self._lm_weight = lexicon, lm_weight
        guess = lm_weight * lexicon.unknown + unknown_score
        hope = max(guess, lm_weight * max(lexicon.scores.values()))
        self.unknown = Beginning("", UNKNOWN, guess, guess)
        self.begun = Beginning("", None, guess, hope)  # by a unit that has no letter
        self.between = Beginning("", None, 0.0, hope)  # words
        self._nodes: dict[str, Beginning] = {"": self.begun}

    def grow(self, beginning: Beginning, unit: int) -> Beginning:
        """Return the beginning that is one unit longer."""
        letters = beginning.letters + self._lexicon.letters[unit]
        if beginning is self.unknown:
            longer = beginning
        elif (found := self._nodes.get(letters)) is not None:
            longer = found
        elif (score := self._lexicon.scores.get(letters)) is None:
            longer = self.unknown
        else:
            ahead = self._lm_weight * score
            word = self._lexicon.spelled.get(letters, UNKNOWN)
            longer = self._nodes[letters] = Beginning(letters, word, ahead, max(ahead, self.unknown.ahead))
        beginning.longer[unit] = longer
        return longer


def _added(units: Units, unit: int) -> str:
    """Return what a unit adds to the word under way: letters, or a phoneme with what joins it to the one before."""
    once = units.decode([unit])
    return units.decode([unit, unit])[len(once) :].strip()
