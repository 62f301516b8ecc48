"""Prefix beam search: the likeliest text of a CTC model and a language model of words together."""

import heapq
import math
import warnings
from collections import ChainMap, Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import reduce
from itertools import accumulate, chain
from operator import itemgetter

import torch
from torch import Tensor

from speechssl.data.units import Units
from speechssl.decode.arpa import read_arpa
from speechssl.decode.forced_alignment import align
from speechssl.decode.greedy import PathToken
from speechssl.decode.hotwords import Hotwords
from speechssl.decode.ngram import END, START, UNKNOWN, Ngram
from speechssl.decode.prefix import Beams, Prefix
from speechssl.decode.sentences import cut_sentences
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.spotting import Spot
from speechssl.errors import AudioError, LanguageModelError

_IMPOSSIBLE = -math.inf
_NUM_LACKING = 8  # letters that are named


class BeamSearch:
    """Finds the text with the highest score: of all its CTC paths, of its words, and of their number.

    Prefixes of the text grow letter by letter, with the probability of all paths that spell them (Graves and Jaitly,
    2014; Hannun et al., 2014, https://arxiv.org/abs/1408.2873). A word counts by the language model once it is
    complete; until then a prefix is ranked by the likeliest known word that begins so. Words that the language model
    does not know are possible at a price, so a small vocabulary leaves names spelled as they are heard. Recordings
    longer than ``sentence_frames`` are parted at long pauses.
    """

    def __init__(self, config: BeamSearchConfig, units: Units, sentence_frames: int | None = None) -> None:
        assert sentence_frames is None or sentence_frames > 1
        if units.delimiter_id is None:
            raise LanguageModelError(
                f"{config.lm}: a language model of words needs a CTC model with a unit that ends a word, such as '|', "
                f"found none among its {len(units)}"
            )
        self.config, self.units, self.sentence_frames = config, units, sentence_frames
        self._delimiter_id = units.delimiter_id
        self._letters = [units.decode([unit]) for unit in range(len(units))]
        self.model = read_arpa(config.lm)
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
            letters = [self._letters[unit] for unit in units.encode(word)]
            self._spelled["".join(letters)] = word  # the likeliest of those with one spelling
            score = self.model.score((), word)
            for beginning in accumulate(letters):
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

    def find_path(self, parts: Iterable[Tensor], hotwords: Hotwords | None = None) -> list[PathToken]:
        """Return the tokens of the best text of a recording, where the CTC model says them best.

        The (S, V) log probabilities come in parts. A recording that is cut at pauses has the end of a word there. Where
        hot words could be said, texts with them are tried too.
        """
        path: list[PathToken] = []
        first_frame = 0
        for sentence in cut_sentences(parts, self.units, self.sentence_frames):
            if first_frame:
                path.append(PathToken(self._delimiter_id, first_frame, first_frame, 0.0))
            path += self._find_sentence(sentence, first_frame, hotwords)
            first_frame += len(sentence)
        return path

    def _find_sentence(self, log_probs: Tensor, first_frame: int, hotwords: Hotwords | None) -> list[PathToken]:
        if log_probs.isnan().any():
            raise AudioError("expected probabilities of the model, found NaN")
        # Units that are no text never win, however likely they are.
        never = torch.tensor(sorted(self.units.special_ids - {self.units.blank_id}), dtype=torch.int64)
        log_probs = log_probs.index_fill(1, never, _IMPOSSIBLE)
        spots = hotwords.find(log_probs) if hotwords else []
        score, best = self._best(self._search(log_probs, ()))
        if spots:
            # In one search, phrases that lose in the end would push out the texts that win without them.
            score_with, best_with = self._best(self._search(log_probs, spots))
            if score_with >= score and any(best_with.spots()):
                best = best_with
        path = align(log_probs, best.labels(), self.units.blank_id, first_frame)
        return [replace(token, spot=spot) for token, spot in zip(path, best.spots(), strict=True)] if spots else path

    def _search(self, log_probs: Tensor, spots: Sequence[Spot]) -> Beams:
        """Return the prefixes that are left at the end."""
        config = self.config
        beams: Beams = {Prefix(None, self.units.blank_id, "", (START,), 0.0, 0.0): [0.0, _IMPOSSIBLE]}
        before: dict[Spot, Beams] = {}
        for number, frame in enumerate(log_probs.tolist()):
            before |= {spot: beams for spot in spots if spot.first_frame == number}
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
            alive = ChainMap(beams, *before.values())
            for prefix in chain(previous, kept):
                prefix.drop(alive)
            for spot in [spot for spot in before if spot.stop_frame == number + 1]:
                self._say(spot, before.pop(spot), log_probs, beams)
        return beams

    def _say(self, spot: Spot, before: Beams, log_probs: Tensor, beams: Beams) -> None:
        """Let the prefixes before a hot phrase go on with it.

        Its words are no unknown ones, so they cost what the language model says of those, but not ``unknown_score``.
        """
        mass = sum(float(log_probs[frame, symbol]) for frame, symbol in spot.symbol_of_frame())
        words = self.units.decode(spot.phrase.labels).split()
        gain = spot.phrase.boost - self.config.unknown_score * sum(word not in self._spelled for word in words)
        for start, ends in before.items():
            prefix = start
            if prefix.word and self._delimiter_id not in spot.border:
                continue
            if prefix.word:
                prefix = self._extended(prefix, self._delimiter_id)
            for label in (*spot.phrase.labels, self._delimiter_id):
                prefix = self._extended(prefix, label)
            if prefix.spot is None:
                prefix.spot = spot
                prefix.score += gain
                prefix.rank += gain
            beams.setdefault(prefix, [_IMPOSSIBLE, _log_add(*ends) + mass])

    def _grow(self, beams: Beams, tried: Sequence[tuple[int, float]]) -> tuple[Beams, list["Extension"]]:
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
                    ahead = self._score_ahead(prefix.word + self._letters[symbol])
                    new.append((mass + prefix.score + ahead, prefix, symbol, mass))
        return kept, new

    def _best(self, beams: Beams) -> tuple[float, Prefix]:
        """Return the best text and its score: the likeliest of its prefixes, with delimiters at its ends or without."""
        masses = {prefix: _log_add(*ends) for prefix, ends in beams.items()}
        spelled: dict[str, list[Prefix]] = {}
        for prefix in beams:
            spelled.setdefault(self.units.decode(prefix.labels()), []).append(prefix)
        scores = {
            text: reduce(_log_add, (masses[prefix] for prefix in prefixes)) + max(map(self._finished_score, prefixes))
            for text, prefixes in spelled.items()
        }
        text = max(scores, key=scores.__getitem__)
        best = max(spelled[text], key=lambda prefix: (self._finished_score(prefix), masses[prefix]))
        return scores[text], best

    def _extended(self, prefix: Prefix, symbol: int) -> Prefix:
        if (child := prefix.children.get(symbol)) is not None:
            return child
        if symbol == self._delimiter_id:
            context, score = self._with_word(prefix)
            child = Prefix(prefix, symbol, "", context, score, score)
        else:
            word = prefix.word + self._letters[symbol]
            rank = prefix.score + self._score_ahead(word)
            child = Prefix(prefix, symbol, word, prefix.context, prefix.score, rank)
        prefix.children[symbol] = child
        return child

    def _score_ahead(self, beginning: str) -> float:
        """Guess the score of a word that begins so: of the likeliest one, or of an unknown one."""
        config = self.config
        known = self._look_ahead.get(beginning)
        return config.lm_weight * self._unknown + config.unknown_score if known is None else config.lm_weight * known

    def _with_word(self, prefix: Prefix) -> tuple[Ngram, float]:
        """Return the context after the word under way, if there is one, and the score with it."""
        config = self.config
        if not prefix.word:
            return prefix.context, prefix.score
        word = self._spelled.get(prefix.word, UNKNOWN)
        score = prefix.score + config.lm_weight * self.model.score(prefix.context, word) + config.word_score
        if word == UNKNOWN:
            score += config.unknown_score
        return self.model.shortened((*prefix.context, word)), score

    def _finished_score(self, prefix: Prefix) -> float:
        context, score = self._with_word(prefix)
        return score + self.config.lm_weight * self.model.score(context, END)


Extension = tuple[float, Prefix, int | None, float]
"""The rank of a prefix with one more symbol, the prefix, the symbol, and the log probability of its paths."""


def _add(grown: Beams, prefix: Prefix, end: int, score: float) -> None:
    """Add paths of a prefix that end in a blank (0) or do not (1)."""
    ends = grown.get(prefix)
    if ends is None:
        ends = grown[prefix] = [_IMPOSSIBLE, _IMPOSSIBLE]
    ends[end] = _log_add(ends[end], score)


def _log_add(first: float, second: float) -> float:
    if first < second:
        first, second = second, first
    return first if second == _IMPOSSIBLE else first + math.log1p(math.exp(second - first))
