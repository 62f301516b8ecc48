"""Prefix beam search: the likeliest text of a CTC model and a language model of words together."""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import reduce
from itertools import chain, groupby
from operator import itemgetter

import torch
from torch import Tensor
from torchaudio.functional import forced_align

from speechssl.data.text import Vocabulary
from speechssl.errors import LanguageModelError
from speechssl.language.ngram import END, START, Ngram, NgramModel
from speechssl.language.settings import BeamSearchConfig
from speechssl.model.ctc import BLANK_ID, PathToken, join_repeats

_IMPOSSIBLE = -math.inf


class BeamSearch:
    """Looks for the text with the highest score: of all its CTC paths, of its words, and of their number.

    Prefixes of the text grow letter by letter, with the probability of all paths that spell them (Graves and Jaitly,
    2014; Hannun et al., 2014, https://arxiv.org/abs/1408.2873). A word counts by the language model once it is
    complete; until then a prefix is ranked by the likeliest known word that begins so. Words that the language model
    does not know are possible at a price, so a small vocabulary leaves names spelled as they are heard.

    Args:
        config: The language model and the weights.
        vocabulary: The CTC model's.

    Raises:
        LanguageModelError: the file cannot be read, or the vocabulary can spell none of its words.
    """

    def __init__(self, config: BeamSearchConfig, vocabulary: Vocabulary) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.model = NgramModel.load(config.lm)
        self._look_ahead: dict[str, float] = {}
        num_spelled = 0
        for word in self.model.words:
            if vocabulary.unknown_characters(word):
                continue
            num_spelled += 1
            score = self.model.score((), word)
            for length in range(1, len(word) + 1):
                beginning = word[:length]
                self._look_ahead[beginning] = max(score, self._look_ahead.get(beginning, _IMPOSSIBLE))
        if not num_spelled:
            example = min(self.model.words, default="no word")
            raise LanguageModelError(
                f"{config.lm}: expected words of the model's letters {''.join(vocabulary.symbols[2:])!r:.80}, "
                f"found none of {len(self.model.words)}, such as {example!r:.40}"
            )

    def reweighted(self, config: BeamSearchConfig) -> "BeamSearch":
        """The same with other weights of the same language model."""
        other = copy(self)
        other.config = config
        return other

    def find_path(self, log_probs: Tensor, first_frame: int = 0) -> list[PathToken]:
        """The tokens of the best text, where the CTC model says them best.

        Args:
            log_probs: (S, V) float32 of an utterance.
            first_frame: The number of the first of these frames.
        """
        log_probs = log_probs.cpu()
        labels = self._best(self._search(log_probs)).labels()
        if not labels:
            return []
        targets = torch.tensor([labels], dtype=torch.int32)
        path, scores = forced_align(log_probs[None], targets, blank=BLANK_ID)
        return join_repeats(scores[0].tolist(), path[0].tolist(), first_frame)

    def find_long_path(self, parts: Iterable[Tensor], num_frames: int) -> list[PathToken]:
        """The same of a recording of any length, a sentence reaching from one long pause to the next.

        Args:
            parts: (S, V) float32, one after another.
            num_frames: Length of a sentence at most; it ends at the longest pause in its second half.
        """
        path: list[PathToken] = []
        first_frame = 0
        pending = torch.empty(0, len(self.vocabulary))
        for part in parts:
            pending = torch.cat((pending, part.cpu()))
            while len(pending) > num_frames:
                stop = num_frames // 2 + self._longest_pause(pending[num_frames // 2 : num_frames])
                path += self.find_path(pending[:stop], first_frame)
                pending = pending[stop:]
                first_frame += stop
        return path + self.find_path(pending, first_frame)

    def _longest_pause(self, log_probs: Tensor) -> int:
        """The frame in the middle of the longest run without letters; if there is none, the last."""
        pauses = []
        stop = 0
        for is_silent, run in groupby((log_probs.argmax(dim=1) <= self.vocabulary.word_delimiter_id).tolist()):
            start, stop = stop, stop + sum(1 for _ in run)
            if is_silent:
                pauses.append((stop - start, (start + stop) // 2))
        return max(pauses, default=(0, len(log_probs)))[1]

    def _search(self, log_probs: Tensor) -> "Beams":
        """The prefixes that are left at the end."""
        config = self.config
        root = _Prefix(None, self.vocabulary.word_delimiter_id, "", (START,), 0.0, 0.0)
        beams: Beams = {root: [0.0, _IMPOSSIBLE]}
        for frame in log_probs.tolist():
            least = min(config.min_symbol_log_prob, max(frame))
            tried = [(symbol, score) for symbol, score in enumerate(frame) if score >= least]
            kept, new = self._grow(beams, tried)
            ranked = [(_log_add(*ends) + prefix.rank, prefix, None, 0.0) for prefix, ends in kept.items()]
            best = heapq.nlargest(config.beam_size, chain(ranked, new), key=itemgetter(0))
            lowest = best[0][0] - config.beam_threshold
            previous, beams = beams, {}
            for rank, prefix, symbol, mass in best:
                if rank < lowest:
                    break
                if symbol is None:
                    beams[prefix] = kept[prefix]
                else:
                    beams[self._extended(prefix, symbol)] = [_IMPOSSIBLE, mass]
            for prefix in chain(previous, kept):
                prefix.drop(beams)
        return beams

    def _grow(self, beams: "Beams", tried: Sequence[tuple[int, float]]) -> tuple["Beams", list["Extension"]]:
        """What becomes of prefixes at a frame: those that are there already, and those that could be new."""
        delimiter = self.vocabulary.word_delimiter_id
        kept: Beams = {}
        new: list[Extension] = []
        for prefix, (blank, repeat) in beams.items():
            either = _log_add(blank, repeat)
            for symbol, score in tried:
                if symbol == BLANK_ID:
                    _add(kept, prefix, 0, either + score)
                    continue
                mass = either + score
                if symbol == prefix.symbol:
                    if symbol == delimiter:  # no text has two in a row
                        _add(kept, prefix, 1, mass)
                        continue
                    _add(kept, prefix, 1, repeat + score)
                    mass = blank + score
                child = prefix.children.get(symbol)
                if child is None and symbol == delimiter:
                    child = self._extended(prefix, symbol)
                if child is not None:
                    _add(kept, child, 1, mass)
                else:
                    new.append((mass + prefix.score + self._pending(prefix, symbol), prefix, symbol, mass))
        return kept, new

    def _best(self, beams: "Beams") -> "_Prefix":
        """The best text; of it with a delimiter after its last word and without, the likelier."""
        masses = {prefix: _log_add(*ends) for prefix, ends in beams.items()}
        spelled: dict[_Prefix, list[_Prefix]] = {}
        for prefix in beams:
            text = prefix if prefix.word or prefix.parent is None else prefix.parent
            spelled.setdefault(text, []).append(prefix)
        scores = {
            text: reduce(_log_add, (masses[prefix] for prefix in prefixes)) + self._finished_score(text)
            for text, prefixes in spelled.items()
        }
        return max(spelled[max(scores, key=scores.__getitem__)], key=masses.__getitem__)

    def _extended(self, prefix: "_Prefix", symbol: int) -> "_Prefix":
        if (child := prefix.children.get(symbol)) is not None:
            return child
        if symbol == self.vocabulary.word_delimiter_id:
            context, score = self._with_word(prefix)
            child = _Prefix(prefix, symbol, "", context, score, score)
        else:
            word = prefix.word + self.vocabulary.symbols[symbol]
            rank = prefix.score + self._pending(prefix, symbol)
            child = _Prefix(prefix, symbol, word, prefix.context, prefix.score, rank)
        prefix.children[symbol] = child
        return child

    def _pending(self, prefix: "_Prefix", symbol: int) -> float:
        """A guess at the score of the word under way with one more letter.

        As if the likeliest known word that begins so were complete; the beginning of no known word pays at once.
        """
        ahead = self._look_ahead.get(prefix.word + self.vocabulary.symbols[symbol])
        return self.config.unknown_score if ahead is None else self.config.lm_weight * ahead

    def _with_word(self, prefix: "_Prefix") -> tuple[Ngram, float]:
        """The context after the word under way, and the score with it."""
        config = self.config
        score = prefix.score + config.lm_weight * self.model.score(prefix.context, prefix.word) + config.word_score
        if prefix.word not in self.model.words:
            score += config.unknown_score
        return self.model.shortened((*prefix.context, prefix.word)), score

    def _finished_score(self, prefix: "_Prefix") -> float:
        context, score = self._with_word(prefix) if prefix.word else (prefix.context, prefix.score)
        return score + self.config.lm_weight * self.model.score(context, END)


class _Prefix:
    """The beginning of a text, a node in the tree of all that are kept.

    Attributes:
        symbol: Its last.
        word: The letters of the word under way.
        context: The words before that count.
        score: Of its complete words, by the language model.
        rank: The same with a guess at the word under way.
    """

    __slots__ = ("children", "context", "parent", "rank", "score", "symbol", "word")

    def __init__(
        self, parent: "_Prefix | None", symbol: int, word: str, context: Ngram, score: float, rank: float
    ) -> None:
        self.parent, self.symbol, self.word, self.context = parent, symbol, word, context
        self.score, self.rank = score, rank
        self.children: dict[int, _Prefix] = {}

    def labels(self) -> list[int]:
        """Its symbols, from the first on."""
        return [prefix.symbol for prefix in self._line()][::-1]

    def drop(self, kept: "Beams") -> None:
        """Forget it, and those before it that lead nowhere else."""
        prefix = self
        while prefix.parent is not None and not prefix.children and prefix not in kept:
            prefix.parent.children.pop(prefix.symbol, None)
            prefix = prefix.parent

    def _line(self) -> "Iterator[_Prefix]":
        prefix = self
        while prefix.parent is not None:
            yield prefix
            prefix = prefix.parent


Beams = dict[_Prefix, list[float]]
"""The log probabilities of all paths of a prefix: of those that end in a blank, and of those that do not."""
Extension = tuple[float, _Prefix, int | None, float]
"""The rank of a prefix with one more symbol, the prefix, the symbol, and the log probability of its paths."""


def _add(grown: Beams, prefix: _Prefix, end: int, score: float) -> None:
    """Add paths of a prefix that end in a blank (0) or do not (1)."""
    ends = grown.get(prefix)
    if ends is None:
        ends = grown[prefix] = [_IMPOSSIBLE, _IMPOSSIBLE]
    ends[end] = _log_add(ends[end], score)


def _log_add(first: float, second: float) -> float:
    if first < second:
        first, second = second, first
    return first if second == _IMPOSSIBLE else first + math.log1p(math.exp(second - first))
