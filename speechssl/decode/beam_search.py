"""Prefix beam search: the likeliest text of a CTC model and a language model of words together."""

import heapq
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import reduce
from itertools import accumulate, chain, groupby
from operator import itemgetter

import torch
from torch import Tensor

from speechssl.data.units import Units
from speechssl.decode.arpa import read_arpa
from speechssl.decode.forced_alignment import align
from speechssl.decode.greedy import PathToken
from speechssl.decode.kenlm_model import KenlmModel, is_kenlm
from speechssl.decode.ngram import END, START, UNKNOWN, LanguageModel, Ngram
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import AudioError, LanguageModelError

_IMPOSSIBLE = -math.inf
_NUM_LACKING = 8  # letters that are named


class BeamSearch:
    """Finds the text with the highest score: of all its CTC paths, of its words, and of their number.

    Prefixes of the text grow unit by unit (letters, pieces or phonemes), with the probability of all paths that spell
    them (Graves and Jaitly, 2014; Hannun et al., 2014, https://arxiv.org/abs/1408.2873). A word counts by the language
    model once it is complete; until then a prefix is ranked by the likeliest known word that begins so. Words that the
    language model does not know are possible at a price, so a small vocabulary leaves names spelled as they are heard.
    Recordings longer than ``sentence_frames`` are parted at long pauses.
    """

    def __init__(self, config: BeamSearchConfig, units: Units, sentence_frames: int | None = None) -> None:
        assert sentence_frames is None or sentence_frames > 1
        self.config, self.units, self.sentence_frames = config, units, sentence_frames
        self._delimiter_id = units.delimiter_id
        self._letters = [_added(units, unit) for unit in range(len(units))]
        self._begins = [units.word_starts([unit, unit])[1] for unit in range(len(units))]
        if units.delimiter_id is None and not any(self._begins):
            raise LanguageModelError(
                f"{config.lm}: a language model of words needs a CTC model with a unit that ends a word, such as '|', "
                f"found none among its {len(units)}"
            )
        self.model: LanguageModel = KenlmModel(config.lm) if is_kenlm(config.lm) else read_arpa(config.lm)
        self._unknown = self.model.score((), UNKNOWN)
        self._look_ahead: dict[str, float] = {}
        self._spelled: dict[str, str] = {}  # words as the units write them, perhaps in capitals -> as the model does
        lacking: Counter[str] = Counter()
        num_unspelled = 0
        for word in sorted(self.model.words, key=lambda word: self.model.score((), word)):
            unknown = units.unknown_characters(word)
            if unknown or word.split() != [word]:
                lacking.update(unknown)
                num_unspelled += 1
                continue
            labels = units.encode(word)
            if sum(units.word_starts(labels)) > 1:  # a word of letters, where each unit is a word
                num_unspelled += 1
                continue
            letters = "".join(self._letters[unit] for unit in labels)
            self._spelled[letters] = word  # the likeliest of those with one spelling
            score = self.model.score((), word)
            for beginning in accumulate(letters):  # other units than these may spell the word as well
                self._look_ahead[beginning] = max(score, self._look_ahead.get(beginning, _IMPOSSIBLE))
        if not self._spelled:
            example = min(self.model.words, default="no word")
            raise LanguageModelError(
                f"{config.lm}: expected words of the model's letters {''.join(self._letters)!r:.80}, "
                f"found none of {len(self.model.words)}, such as {example!r:.40}"
            )
        if num_unspelled > len(self.model.words) / 2:
            named = ", ".join(f"{letter!r} in {number}" for letter, number in lacking.most_common(_NUM_LACKING))
            more = f" and {len(lacking) - _NUM_LACKING} others" if len(lacking) > _NUM_LACKING else ""
            warnings.warn(
                f"{config.lm}: {num_unspelled} of {len(self.model.words)} words cannot be spelled with the model's "
                f"letters and are never found; it lacks {named}{more}",
                stacklevel=2,
            )

    def reweighted(self, config: BeamSearchConfig) -> "BeamSearch":
        """Return the same search with other weights of the same language model."""
        other = copy(self)
        other.config = config
        return other

    def find_path(self, parts: Iterable[Tensor]) -> list[PathToken]:
        """Return the tokens of the best text of a recording, where the CTC model says them best.

        The (S, V) log probabilities come in parts. A recording that is cut at pauses has the end of a word there.
        """
        path: list[PathToken] = []
        first_frame = 0
        for sentence in self._sentences(parts):
            if first_frame and self._delimiter_id is not None:
                path.append(PathToken(self._delimiter_id, first_frame, first_frame, 0.0))
            path += self._find_sentence(sentence, first_frame)
            first_frame += len(sentence)
        return path

    def _sentences(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the frames, cut at the longest pause in the second half of what is long enough."""
        pending = torch.empty(0, len(self.units))
        for part in parts:
            pending = torch.cat((pending, part.cpu()))
            while self.sentence_frames is not None and len(pending) > self.sentence_frames:
                middle = self.sentence_frames // 2
                stop = middle + self._longest_pause(pending[middle : self.sentence_frames])
                yield pending[:stop]
                pending = pending[stop:]
        yield pending

    def _longest_pause(self, log_probs: Tensor) -> int:
        """Return the frame in the middle of the longest run without letters; if there is none, the last."""
        pauses = []
        stop = 0
        for is_silent, run in groupby(not self._letters[unit] for unit in log_probs.argmax(dim=1).tolist()):
            start, stop = stop, stop + sum(1 for _ in run)
            if is_silent:
                pauses.append((stop - start, (start + stop) // 2))
        return max(pauses, default=(0, len(log_probs)))[1]

    def _find_sentence(self, log_probs: Tensor, first_frame: int) -> list[PathToken]:
        if log_probs.isnan().any():
            raise AudioError("expected probabilities of the model, found NaN")
        # Units that are no text never win, however likely they are.
        never = torch.tensor(sorted(self.units.special_ids - {self.units.blank_id}), dtype=torch.int64)
        log_probs = log_probs.index_fill(1, never, _IMPOSSIBLE)
        labels = self._best(self._search(log_probs)).labels()
        return align(log_probs, labels, self.units.blank_id, first_frame)

    def _search(self, log_probs: Tensor) -> "Beams":
        """Return the prefixes that are left at the end."""
        config = self.config
        beams: Beams = {_Prefix(None, self.units.blank_id, "", (START,), 0.0, 0.0): [0.0, _IMPOSSIBLE]}
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
        """Return what becomes of prefixes at a frame: those that are there already, and those that could be new."""
        blank_id, delimiter = self.units.blank_id, self._delimiter_id
        kept: Beams = {}
        new: list[Extension] = []
        for prefix, (blank, repeat) in beams.items():
            either = _log_add(blank, repeat)
            for symbol, score in tried:
                if symbol == blank_id:
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
                    word, _, before = self._grown(prefix, symbol)
                    new.append((mass + before + self._score_ahead(word), prefix, symbol, mass))
        return kept, new

    def _best(self, beams: "Beams") -> "_Prefix":
        """Return the best text: of its prefixes, with delimiters at its ends and without, the likeliest."""
        masses = {prefix: _log_add(*ends) for prefix, ends in beams.items()}
        spelled: dict[str, list[_Prefix]] = {}
        for prefix in beams:
            spelled.setdefault(self.units.decode(prefix.labels()), []).append(prefix)
        scores = {
            text: reduce(_log_add, (masses[prefix] for prefix in prefixes)) + self._finished_score(prefixes[0])
            for text, prefixes in spelled.items()
        }
        return max(spelled[max(scores, key=scores.__getitem__)], key=masses.__getitem__)

    def _extended(self, prefix: "_Prefix", symbol: int) -> "_Prefix":
        if (child := prefix.children.get(symbol)) is not None:
            return child
        word, context, score = self._grown(prefix, symbol)
        rank = score if symbol == self._delimiter_id else score + self._score_ahead(word)
        child = prefix.children[symbol] = _Prefix(prefix, symbol, word, context, score, rank)
        return child

    def _grown(self, prefix: "_Prefix", symbol: int) -> tuple[str, Ngram, float]:
        """Return the word under way after one more symbol, the context before it and the score of complete words."""
        letters = self._letters[symbol]
        if symbol == self._delimiter_id or self._begins[symbol]:
            return letters, *self._with_word(prefix)
        return prefix.word + letters, prefix.context, prefix.score

    def _score_ahead(self, beginning: str) -> float:
        """Guess the score of a word that begins so: of the likeliest one, or of an unknown one."""
        config = self.config
        known = self._look_ahead.get(beginning)
        return config.lm_weight * self._unknown + config.unknown_score if known is None else config.lm_weight * known

    def _with_word(self, prefix: "_Prefix") -> tuple[Ngram, float]:
        """Return the context after the word under way, if there is one, and the score with it."""
        config = self.config
        if not prefix.word:
            return prefix.context, prefix.score
        if prefix.complete is not None:
            return prefix.complete
        word = self._spelled.get(prefix.word, UNKNOWN)
        score = prefix.score + config.lm_weight * self.model.score(prefix.context, word) + config.word_score
        if word == UNKNOWN:
            score += config.unknown_score
        prefix.complete = self.model.shortened((*prefix.context, word)), score
        return prefix.complete

    def _finished_score(self, prefix: "_Prefix") -> float:
        context, score = self._with_word(prefix)
        return score + self.config.lm_weight * self.model.score(context, END)


class _Prefix:
    """The beginning of a text, a node in the tree of all that are kept: its last symbol, and what is known so far.

    ``word`` is under way, ``context`` the words before it that count, ``score`` that of complete words, ``rank`` the
    same with a guess at the word under way, ``complete`` context and score after it, once they were needed.
    ``children``, with one more symbol, are kept or lead to one that is.
    """

    __slots__ = ("children", "complete", "context", "parent", "rank", "score", "symbol", "word")

    def __init__(
        self, parent: "_Prefix | None", symbol: int, word: str, context: Ngram, score: float, rank: float
    ) -> None:
        self.parent, self.symbol, self.word, self.context = parent, symbol, word, context
        self.score, self.rank = score, rank
        self.complete: tuple[Ngram, float] | None = None
        self.children: dict[int, _Prefix] = {}

    def labels(self) -> list[int]:
        """Return its symbols, from the first on."""
        labels = []
        prefix = self
        while prefix.parent is not None:
            labels.append(prefix.symbol)
            prefix = prefix.parent
        return labels[::-1]

    def drop(self, kept: "Beams") -> None:
        """Forget it unless it is kept, and those before it that lead nowhere else."""
        prefix = self
        while prefix.parent is not None and not prefix.children and prefix not in kept:
            prefix.parent.children.pop(prefix.symbol, None)
            prefix = prefix.parent


Beams = dict[_Prefix, list[float]]
"""The log probabilities of all paths of a prefix: of those that end in a blank, and of those that do not."""
Extension = tuple[float, _Prefix, int | None, float]
"""The rank of a prefix with one more symbol, the prefix, the symbol, and the log probability of its paths."""


def _added(units: Units, unit: int) -> str:
    """Return what a unit adds to the word under way: letters, or a phoneme with what joins it to the one before."""
    once = units.decode([unit])
    return units.decode([unit, unit])[len(once) :].strip()


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
