"""How prefixes grow: their words, and what a language model says of them."""

from collections.abc import Sequence
from copy import copy

from speechssl.data.units import WORD_DELIMITER, Units
from speechssl.decode.lexicon import Beginning, Lexicon, WordTree
from speechssl.decode.ngram import END, START, UNKNOWN, LanguageModel, Ngram
from speechssl.decode.prefix import Prefix
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.words import has_no_spaces

_MOST_SCORED = 100_000  # words after others whose scores are kept


class PrefixScorer:
    """Extends prefixes by symbols, and scores their words by a language model and its weights.

    Attributes:
        ends: Whether each unit ends the word before it: a delimiter, the first piece of a word, or, in a language model
            of letters, each letter.
        words: The beginnings of all words.
    """

    def __init__(self, model: LanguageModel, units: Units, config: BeamSearchConfig) -> None:
        self.lexicon = Lexicon(model, units, config.lm)
        self._model, self._units, self._delimiter_id, self._blank_id = model, units, units.delimiter_id, units.blank_id
        self.ends = [
            self.lexicon.is_of_letters or begins or unit == units.delimiter_id
            for unit, begins in enumerate(self.lexicon.begins)
        ]
        self._scored: dict[tuple[Ngram, str], tuple[Ngram, float]] = {}
        self._set_weights(config)

    def reweighted(self, config: BeamSearchConfig) -> "PrefixScorer":
        """Return the same with other weights."""
        other = copy(self)
        other._set_weights(config)
        return other

    def _set_weights(self, config: BeamSearchConfig) -> None:
        self._config = config
        self.words = WordTree(self.lexicon, config.lm_weight, config.unknown_score)

    def root(self) -> Prefix:
        """Return the prefix without a symbol, before the first frame."""
        root = Prefix(None, self._blank_id, self.words.between, (START,), 0.0)
        root.blank = root.total = 0.0
        return root

    def extended(self, prefix: Prefix, symbol: int) -> Prefix:
        """Return a prefix with one more symbol, which is made if it is not there."""
        if (child := prefix.children.get(symbol)) is None:
            if self.ends[symbol]:
                beginning, context, score = self.ended(prefix, symbol)
            else:
                beginning, context, score = prefix.beginning, prefix.context, prefix.score
                beginning = beginning.longer.get(symbol) or self.words.grow(beginning, symbol)
            child = prefix.children[symbol] = Prefix(prefix, symbol, beginning, context, score)
        return child

    def ended(self, prefix: Prefix, symbol: int) -> tuple[Beginning, Ngram, float]:
        """Return what a symbol begins that ends the word under way, the context before it and the score with it."""
        words, is_delimiter = self.words, symbol == self._delimiter_id
        if self.lexicon.is_of_letters and not (is_delimiter and prefix.parent is None):
            return words.between, *self._after(prefix, self.lexicon.unit_words[symbol])
        context, score = self.with_word(prefix)
        if is_delimiter:
            return words.between, context, score
        return words.begun.longer.get(symbol) or words.grow(words.begun, symbol), context, score

    def with_word(self, prefix: Prefix) -> tuple[Ngram, float]:
        """Return the context after the word under way, if there is one, and the score with it."""
        if prefix.beginning.word is None:
            return prefix.context, prefix.score
        if prefix.complete is None:
            prefix.complete = self._after(prefix, prefix.beginning.word)
        return prefix.complete

    def _after(self, prefix: Prefix, word: str) -> tuple[Ngram, float]:
        """Return the context after a word of the language model, and the score with it."""
        config, key = self._config, (prefix.context, word)
        if key not in self._scored:
            if len(self._scored) >= _MOST_SCORED:
                self._scored.clear()
            self._scored[key] = self._model.shortened((*prefix.context, word)), self._model.score(*key)
        context, log_prob = self._scored[key]
        score = prefix.score + config.lm_weight * log_prob + config.word_score
        return context, score + config.unknown_score if word == UNKNOWN else score

    def word_starts(self, labels: Sequence[int]) -> list[bool]:
        """Tell which symbols begin a word; in scripts without spaces, with a model of letters, each letter does."""
        starts = self._units.word_starts(labels)
        if self.lexicon.is_of_letters:
            alone = [any(map(has_no_spaces, self._units.decode([label]))) for label in labels]
            starts = [
                start or one or before for start, one, before in zip(starts, alone, [False, *alone], strict=False)
            ]
        return starts

    def finished_score(self, prefix: Prefix) -> float:
        """Return the score of the words of a text that ends here."""
        if self.lexicon.is_of_letters and prefix.parent is not None and prefix.symbol != self._delimiter_id:
            context, score = self._after(prefix, WORD_DELIMITER)  # which ends texts of letters, heard or not
        else:
            context, score = self.with_word(prefix)
        return score + self._config.lm_weight * self._model.score(context, END)
