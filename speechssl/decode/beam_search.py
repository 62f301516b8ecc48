"""Prefix beam search: the likeliest texts of a CTC model and a language model of words together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import reduce
from itertools import chain, islice
from operator import itemgetter

import torch
from torch import Tensor

from speechssl.data.units import Units
from speechssl.decode.arpa import read_arpa
from speechssl.decode.forced_alignment import align
from speechssl.decode.greedy import PathToken
from speechssl.decode.hotwords import Hotwords
from speechssl.decode.hypotheses import Hypothesis, Sentence
from speechssl.decode.kenlm_model import KenlmModel, is_kenlm
from speechssl.decode.lattice import Lattice, make_lattice
from speechssl.decode.ngram import UNKNOWN, LanguageModel
from speechssl.decode.prefix import IMPOSSIBLE, Prefix, log_add
from speechssl.decode.prefix_scorer import PrefixScorer
from speechssl.decode.sentences import cut_sentences
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.spotting import Spot
from speechssl.errors import AudioError

Step = tuple[float, Prefix, int | None, float, float, float]
"""What may become of a prefix at a frame: its rank; the prefix, or the one before a new symbol, and that symbol; the
log probabilities of the paths that end in a blank, of those that do not, and of all."""

_LATTICE_NATS = 15.0  # texts whose scores are lower than the best one's by more say nothing: exp(-15) is 3e-7


class BeamSearch:
    """Finds the text with the highest score: of all its CTC paths, of its words, and of their number.

    Prefixes of the text grow unit by unit, with the probability of all paths that spell them (Graves and Jaitly,
    2014; Hannun et al., 2014, https://arxiv.org/abs/1408.2873). A word counts by the language model once it is
    complete; until then a prefix is ranked by the likeliest known word that begins so. Words that the language model
    does not know are possible at a price, so a small vocabulary leaves names spelled as they are heard. With a
    language model of letters, each letter is a word. Recordings longer than ``sentence_frames`` are parted at long
    pauses.
    """

    def __init__(self, config: BeamSearchConfig, units: Units, sentence_frames: int | None = None) -> None:
        assert sentence_frames is None or sentence_frames > 1
        self.config, self.units, self.sentence_frames = config, units, sentence_frames
        self.model: LanguageModel = KenlmModel(config.lm) if is_kenlm(config.lm) else read_arpa(config.lm)
        self._scorer = PrefixScorer(self.model, units, config)

    def reweighted(self, config: BeamSearchConfig) -> "BeamSearch":
        """Return the same search with other weights of the same language model."""
        other = copy(self)
        other.config = config
        other._scorer = self._scorer.reweighted(config)
        return other

    def find_path(self, parts: Iterable[Tensor], hotwords: Hotwords | None = None) -> list[PathToken]:
        """Return the tokens of the best text of a recording, where the CTC model says them best.

        A recording that is cut at pauses has the end of a word there. Arguments are as for `find_sentences`.
        """
        return self.join_paths(self.find_sentences(parts, hotwords))

    def find_sentences(
        self,
        parts: Iterable[Tensor],
        hotwords: Hotwords | None = None,
        num_texts: int = 1,
        *,
        with_lattices: bool = False,
    ) -> Iterator[Sentence]:
        """Yield what is found in a recording, which is cut at pauses if it is long, up to ``num_texts`` texts each.

        The (S, V) log probabilities come in parts. Where hot words could be said, texts with them are tried too. With
        lattices, the tokens know the posterior probabilities of their words.
        """
        first_frame = 0
        for log_probs in cut_sentences(parts, self.units, self.sentence_frames):
            yield self._find_sentence(log_probs, first_frame, hotwords, num_texts, with_lattices)
            first_frame += len(log_probs)

    def join_paths(self, sentences: Iterable[Sentence]) -> list[PathToken]:
        """Return the tokens of a recording, with a delimiter between its sentences."""
        path: list[PathToken] = []
        for sentence in sentences:
            if sentence.first_frame and self.units.delimiter_id is not None:
                path.append(PathToken(self.units.delimiter_id, sentence.first_frame, sentence.first_frame, 0.0))
            path += sentence.path
        return path

    def _find_sentence(
        self, log_probs: Tensor, first_frame: int, hotwords: Hotwords | None, num_texts: int, with_lattice: bool
    ) -> Sentence:
        if log_probs.isnan().any():
            raise AudioError("expected probabilities of the model, found NaN")
        # Units that are no text never win, however likely they are.
        never = torch.tensor(sorted(self.units.special_ids - {self.units.blank_id}), dtype=torch.int64)
        log_probs = log_probs.index_fill(1, never, IMPOSSIBLE)
        spots = hotwords.find(log_probs) if hotwords else []
        ranked = self._rank_texts(self._search(log_probs, ()))
        if spots:
            # In one search, phrases that lose in the end would push out the texts that win without them.
            with_spots = self._rank_texts(self._search(log_probs, spots))
            is_better = with_spots[0][0].score >= ranked[0][0].score
            if is_better and any(with_spots[0][1].spots(self.units.delimiter_id)):
                ranked = with_spots
        best = ranked[0][1]
        path = align(log_probs, best.labels(), self.units.blank_id, first_frame)
        if spots:
            of_tokens = best.spots(self.units.delimiter_id)
            path = [replace(token, spot=spot) for token, spot in zip(path, of_tokens, strict=True)]
        lattice: Lattice | None = None
        if with_lattice:
            lowest = ranked[0][0].score - _LATTICE_NATS
            likely = [prefix for hypothesis, prefix in ranked if hypothesis.score >= lowest]
            lattice, posteriors = make_lattice(likely, self._scorer, self.units, log_probs, first_frame)
            path = [replace(token, posterior=posterior) for token, posterior in zip(path, posteriors, strict=True)]
        hypotheses = tuple(hypothesis for hypothesis, _ in ranked[:num_texts])
        return Sentence(first_frame, first_frame + len(log_probs), hypotheses, path, lattice)

    def _search(self, log_probs: Tensor, spots: Sequence[Spot]) -> list[Prefix]:
        """Return the prefixes that are left at the end."""
        beams = [self._scorer.root()]
        before: dict[Spot, dict[Prefix, float]] = {}
        for number, tried in enumerate(_tried(log_probs, self.config.min_symbol_log_prob)):
            before |= {spot: {prefix: prefix.total for prefix in beams} for spot in spots if spot.first_frame == number}
            gone, beams = set(beams), self._step(beams, tried)
            alive = set(beams)
            gone -= alive
            for prefix in gone:
                prefix.blank = prefix.repeat = prefix.total = IMPOSSIBLE
            alive.update(*before.values())
            for prefix in gone:
                prefix.drop(alive)
            for spot in [spot for spot in before if spot.stop_frame == number + 1]:
                starts = before.pop(spot)
                self._say(spot, starts, log_probs, beams)
                alive = set(beams).union(*before.values())
                for prefix in starts:
                    prefix.drop(alive)
        return beams

    def _step(self, beams: Sequence[Prefix], tried: dict[int, float]) -> list[Prefix]:
        """Return the best prefixes after one more frame, with its symbols that are tried and their scores."""
        size, threshold = self.config.beam_size, self.config.beam_threshold
        if len(beams) <= size and tried.keys() == {self.units.blank_id}:  # they stay as they are, in their order
            for prefix in beams:
                prefix.blank = prefix.total = prefix.total + tried[self.units.blank_id]
                prefix.repeat = IMPOSSIBLE
            return list(beams)
        kept = self._stay(beams, tried)
        kept.sort(key=itemgetter(0), reverse=True)
        # What ranks lower than those that are there already need not be made.
        cut = kept[0][0] - threshold if kept else IMPOSSIBLE
        if len(kept) >= size:
            cut = max(cut, kept[size - 1][0])
        kept += self._grow(beams, tried, cut)
        kept.sort(key=itemgetter(0), reverse=True)
        lowest = kept[0][0] - threshold
        best = []
        for rank, prefix, symbol, blank, repeat, total in kept[:size]:
            if rank < lowest:
                break
            if symbol is not None:
                prefix = self._scorer.extended(prefix, symbol)
            prefix.blank, prefix.repeat, prefix.total = blank, repeat, total
            best.append(prefix)
        return best

    def _stay(self, beams: Sequence[Prefix], tried: dict[int, float]) -> list[Step]:
        """Return what becomes of prefixes that are there already."""
        blank_score, delimiter = tried.get(self.units.blank_id, IMPOSSIBLE), self.units.delimiter_id
        held = set(beams)
        # Those that only lead to others may come back.
        inner = [
            child
            for prefix in beams
            if prefix.children
            for symbol, child in prefix.children.items()
            if symbol in tried and child not in held
        ]
        steps: list[Step] = []
        for prefix in chain(beams, inner):
            symbol, total, parent = prefix.symbol, prefix.total, prefix.parent
            blank = total + blank_score
            if symbol in tried and parent is not None:
                score = tried[symbol]
                repeat = (parent.blank if parent.symbol == symbol else parent.total) + score
                # No text has two delimiters in a row.
                staying = (total if symbol == delimiter else prefix.repeat) + score
                if staying != IMPOSSIBLE:
                    repeat = staying if repeat == IMPOSSIBLE else log_add(staying, repeat)
                total = repeat if blank == IMPOSSIBLE else log_add(blank, repeat)
                steps.append((total + prefix.rank, prefix, None, blank, repeat, total))
            elif blank_score != IMPOSSIBLE:
                steps.append((blank + prefix.rank, prefix, None, blank, IMPOSSIBLE, blank))
        return steps

    def _grow(self, beams: Iterable[Prefix], tried: Mapping[int, float], cut: float) -> list[Step]:
        """Return prefixes with a new symbol, if they rank no lower than ``cut``."""
        blank_id, delimiter, scorer = self.units.blank_id, self.units.delimiter_id, self._scorer
        grow = scorer.words.grow
        symbols = [(symbol, score) for symbol, score in tried.items() if symbol != blank_id]
        inside = [(symbol, score) for symbol, score in symbols if not scorer.ends[symbol]]
        ends = [(symbol, score) for symbol, score in symbols if scorer.ends[symbol]]
        most = max((score for _, score in inside), default=IMPOSSIBLE)
        steps: list[Step] = []
        for prefix in beams:
            total, children = prefix.total, prefix.children
            for symbol, score in ends:
                if symbol not in children and not symbol == delimiter == prefix.symbol:
                    mass = (prefix.blank if symbol == prefix.symbol else total) + score
                    beginning, _, before = scorer.ended(prefix, symbol)
                    rank = mass + before + beginning.ahead
                    if rank >= cut:
                        steps.append((rank, prefix, symbol, IMPOSSIBLE, mass, mass))
            before, beginning = prefix.score, prefix.beginning
            if total + most + before + beginning.hope < cut:
                continue
            longer = beginning.longer
            for symbol, score in inside:
                if symbol not in children:
                    mass = (prefix.blank if symbol == prefix.symbol else total) + score
                    rank = mass + before + (longer.get(symbol) or grow(beginning, symbol)).ahead
                    if rank >= cut:
                        steps.append((rank, prefix, symbol, IMPOSSIBLE, mass, mass))
        return steps

    def _say(self, spot: Spot, before: Mapping[Prefix, float], log_probs: Tensor, beams: list[Prefix]) -> None:
        """Let the prefixes before a hot phrase go on with it.

        Its words are no unknown ones, so they cost what the language model says of those, but not ``unknown_score``.
        """
        delimiter = self.units.delimiter_id
        assert delimiter is not None, "Hotwords refuses units without one"
        mass = sum(float(log_probs[frame, symbol]) for frame, symbol in spot.symbol_of_frame())
        num_unknown = self._scorer.lexicon.words_of(spot.phrase.labels, self.units).count(UNKNOWN)
        gain = spot.phrase.boost - self.config.unknown_score * num_unknown
        for start, total in before.items():
            prefix = start
            if prefix.parent is not None and prefix.symbol != delimiter:
                if delimiter not in spot.border:
                    continue
                prefix = self._scorer.extended(prefix, delimiter)
            for label in (*spot.phrase.labels, delimiter):
                prefix = self._scorer.extended(prefix, label)
            if prefix.spot is None:
                prefix.spot = spot
                prefix.score += gain
                prefix.rank += gain
            if prefix not in beams:
                prefix.repeat = prefix.total = total + mass
                beams.append(prefix)

    def _rank_texts(self, beams: Sequence[Prefix]) -> list[tuple[Hypothesis, Prefix]]:
        """Return texts, the likeliest first, and the best prefix of each, with delimiters at its ends or without."""
        spelled: dict[str, list[Prefix]] = {}
        for prefix in beams:
            spelled.setdefault(self.units.decode(prefix.labels()), []).append(prefix)
        ranked = []
        for text, prefixes in spelled.items():
            score, best = max(
                ((self._scorer.finished_score(prefix), prefix) for prefix in prefixes),
                key=lambda found: (found[0], found[1].total),
            )
            acoustic = reduce(log_add, (prefix.total for prefix in prefixes))
            ranked.append((Hypothesis(text, acoustic, score), best))
        return sorted(ranked, key=lambda found: found[0].score, reverse=True)


def _tried(log_probs: Tensor, min_log_prob: float) -> Iterator[dict[int, float]]:
    """Yield the symbols of each frame that are likely enough, or the likeliest, with their log probabilities."""
    log_probs = log_probs.double()
    is_tried = log_probs >= log_probs.amax(dim=1, keepdim=True).clamp(max=min_log_prob)
    found = zip(is_tried.nonzero()[:, 1].tolist(), log_probs[is_tried].tolist(), strict=True)
    for number in is_tried.sum(dim=1).tolist():
        yield dict(islice(found, number))
