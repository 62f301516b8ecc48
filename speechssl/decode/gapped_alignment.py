"""Where the words of a given text are in a recording, also where text and speech do not quite agree.

The likeliest path of a CTC model through the letters of the words (Kürzinger et al., 2020,
https://arxiv.org/abs/2007.09127), in which two more things may happen between words, each at a cost: sounds that the
text lacks, which take frames as a star does in https://pytorch.org/audio/main/tutorials/ctc_forced_alignment_api_tutorial.html,
and words that are not said, which take none.

Shapes: S frames, V units, N states, W words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from speechssl.decode.greedy import PathToken, join_repeats

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# In natural logarithms. A word that is said at all, however badly it is heard, costs less than to be left out and its
# sounds to be no text; a word that is not said costs some 8 a letter if it is forced upon other sounds.
STAR_START, STAR_FRAME = 2.0, 2.0  # of sounds that the text lacks, a frame whose likeliest unit is not the blank
SKIPS = ((5.0, 1.8), (120.0, 0.02))  # of words that are not said, and a letter: of a few, and of a passage


@dataclass(frozen=True)
class Placed:
    """A word of the text, or sounds between words that the text lacks."""

    word: int | None  # the number of the word, None for other sounds
    tokens: tuple[PathToken, ...]  # none if the word is not said

    @property
    def log_prob(self) -> float:
        """The mean of its letters."""
        return sum(token.log_prob for token in self.tokens) / len(self.tokens)


def align_frames(
    log_probs: Array, words: Sequence[Sequence[int]], blank_id: int, delimiter_id: int | None, *, may_end_early: bool
) -> list[Placed]:
    """Place words on frames.

    Args:
        log_probs: (S, V) natural logarithms.
        words: The labels of each word, with or without the delimiter at its end; a word without labels, which no unit
            spells, may be any sounds.
        blank_id: CTC's blank.
        delimiter_id: The unit between words, if there is one; where it should be there may be a blank as well.
        may_end_early: Whether the text may reach beyond the frames; then words behind them are left out of the result,
            and the last one in it may have only begun.

    Returns:
        All words in the order of the text, and what else is said between them.
    """
    graph = _Graph(words, blank_id, delimiter_id, log_probs.shape[1])
    states = graph.best_path(log_probs, may_end_early)
    return list(graph.read(states, log_probs, may_end_early))


class _Graph:
    """The states that a path goes through: before each word and after the last a blank and a star, then its letters."""

    def __init__(self, words: Sequence[Sequence[int]], blank_id: int, delimiter_id: int | None, num_units: int) -> None:
        self.blank_id = blank_id
        self.delimiter_id = delimiter_id
        # Columns behind the units: a star, one that costs nothing, a delimiter that may be a blank.
        star, free_star, soft_delimiter = range(num_units, num_units + 3)
        self.spelled = [number for number, labels in enumerate(words) if labels]
        self.num_words = len(words)
        # How many words are spelled before one that is not: there a star costs nothing.
        unspelled = {int(np.searchsorted(self.spelled, i)) for i, labels in enumerate(words) if not labels}
        columns: list[int] = []
        owners: list[int] = []  # the number among the spelled words, -1 - number in the states before it
        steps: list[bool] = []
        jumps: list[bool] = []
        firsts, lasts, lengths = [], [], []
        for number in range(len(self.spelled) + 1):
            columns += [blank_id, free_star if number in unspelled else star]
            owners += [-1 - number] * 2
            steps += [False] * 2
            jumps += [False] * 2
            if number == len(self.spelled):
                break
            labels = words[self.spelled[number]]
            firsts.append(len(columns))
            for position, label in enumerate(labels):
                if position:
                    columns.append(blank_id)
                columns.append(soft_delimiter if label == delimiter_id else label)
            states = 2 * len(labels) - 1
            owners += [number] * states
            steps += [False] + [True] * (states - 1)
            jumps += [
                position % 2 == 0 and position > 0 and labels[position // 2] != labels[position // 2 - 1]
                for position in range(states)
            ]
            lasts.append(len(columns) - 1)
            lengths.append(len(labels))
        self.columns, self.owners = np.array(columns), np.array(owners)
        self.step_cost = np.where(steps, 0, -np.inf).astype(np.float32)
        self.jump_cost = np.where(jumps, 0, -np.inf).astype(np.float32)
        self.firsts, self.lasts = np.array(firsts, np.int64), np.array(lasts, np.int64)
        self.blanks = np.flatnonzero((self.owners < 0) & (self.columns == blank_id))
        self.stars = self.blanks + 1
        self.star_cost = np.where(self.columns[self.stars] == free_star, 0, STAR_START).astype(np.float32)
        self.letters_before = np.concatenate(([0], np.cumsum(lengths))).astype(np.float32)
        # CTC puts a blank between equal letters, also where no delimiter parts two words.
        pairs = pairwise(words[number] for number in self.spelled)
        self.is_doubled = np.array([False, *(before[-1] == after[0] for before, after in pairs)])[: len(self.spelled)]

    def best_path(self, log_probs: Array, may_end_early: bool) -> Indices:
        """Return the state of each frame, (S,)."""
        best = log_probs.max(axis=1)
        delimiter = log_probs[:, self.blank_id]
        if self.delimiter_id is not None:
            delimiter = np.maximum(delimiter, log_probs[:, self.delimiter_id])
        star = best - STAR_FRAME * (log_probs.argmax(axis=1) != self.blank_id)
        extended = np.column_stack((log_probs, star, best, delimiter)).astype(np.float32)
        num_states = len(self.columns)
        own = np.arange(num_states, dtype=np.int32)
        origins = np.empty((len(extended), num_states), np.int32)  # where the best path into each state comes from
        scores = np.full(num_states, -np.inf, np.float32)
        for number, row in enumerate(extended):
            ready, ready_origins = self._ready(scores, is_first=number == 0)
            into_words, into_origins = ready[:-1], ready_origins[:-1]
            if number and self.is_doubled.any():
                rested, rest_origins = self._rested(scores)
                into_words = np.where(self.is_doubled, rested, into_words)
                into_origins = np.where(self.is_doubled, rest_origins, into_origins)
            scores, previous = scores.copy(), scores
            origin = origins[number]
            origin[:] = own
            for where, values, sources in (
                (slice(1, None), previous[:-1] + self.step_cost[1:], own[:-1]),
                (slice(2, None), previous[:-2] + self.jump_cost[2:], own[:-2]),
                (self.firsts, into_words, into_origins),
                (self.blanks, ready, ready_origins),
                (self.stars, ready - self.star_cost, ready_origins),
            ):
                is_better = values > scores[where]
                scores[where] = np.where(is_better, values, scores[where])
                origin[where] = np.where(is_better, sources, origin[where])
            scores += row[self.columns]
        state = int(scores.argmax()) if may_end_early else int(self._ready(scores, is_first=False)[1][-1])
        path = np.empty(len(extended), np.int64)
        for number in range(len(path) - 1, -1, -1):
            path[number] = state
            state = int(origins[number, state])
        return path

    def _rested(self, scores: Array) -> tuple[Array, Indices]:
        """Return the better of blank and star before each word, and which it is, (W,)."""
        blank, star = scores[self.blanks[:-1]], scores[self.stars[:-1]]
        return np.maximum(blank, star), np.where(blank >= star, self.blanks[:-1], self.stars[:-1])

    def _ready(self, scores: Array, *, is_first: bool) -> tuple[Array, Indices]:
        """Return the scores of the best paths that are ready for each word and for the end, and their last states."""
        if is_first:
            ready = np.full(len(self.blanks), -np.inf, np.float32)
            ready[0] = 0
            origins = self.blanks
        else:
            said = np.concatenate(([np.float32(-np.inf)], scores[self.lasts]))
            sources = np.stack((self.blanks, self.stars, np.concatenate((self.blanks[:1], self.lasts))))
            values = np.stack((scores[self.blanks], scores[self.stars], said))
            choice = values.argmax(axis=0)
            positions = np.arange(values.shape[1])
            ready, origins = values[choice, positions], sources[choice, positions]
        # From there any number of words may be left out.
        for start, per_letter in SKIPS:
            cost = per_letter * self.letters_before
            before = ready + cost
            highest = np.maximum.accumulate(before)
            source = np.maximum.accumulate(np.where(before >= highest, np.arange(len(ready)), 0))
            skipped = highest[:-1] - start - cost[1:]
            is_better = skipped > ready[1:]
            origins = np.concatenate((origins[:1], np.where(is_better, origins[source[:-1]], origins[1:])))
            ready = np.concatenate((ready[:1], np.where(is_better, skipped, ready[1:])))
        return ready, origins

    def read(self, states: Indices, log_probs: Array, may_end_early: bool) -> Iterator[Placed]:
        """Turn the states of all frames into words and other sounds."""
        next_word = first = 0
        for owner, run in groupby(self.owners[states].tolist()):
            stop = first + sum(1 for _ in run)
            if owner >= 0:
                tokens = self._tokens(states, log_probs, first, stop)
                word, is_text = self.spelled[owner], True
            else:
                tokens = self._heard(log_probs, first, np.isin(states[first:stop], self.stars))
                number = -1 - owner  # of spelled words before
                word = max(next_word, self.spelled[number - 1] + 1 if number else 0)
                # Whether a word without labels is still to come here, of which these sounds may be.
                is_text = word < (self.spelled[number] if number < len(self.spelled) else self.num_words)
            first = stop
            if owner >= 0 or tokens:
                yield from (Placed(left_out, ()) for left_out in range(next_word, word))
                yield Placed(word if is_text else None, tokens)
                next_word = word + is_text
        if not may_end_early:
            yield from (Placed(left_out, ()) for left_out in range(next_word, self.num_words))

    def _tokens(self, states: Indices, log_probs: Array, first: int, stop: int) -> tuple[PathToken, ...]:
        """The letters of a word, without its delimiter."""
        tokens = []
        position = first
        for state, run in groupby(states[first:stop].tolist()):
            end = position + sum(1 for _ in run)
            symbol = int(self.columns[state])
            if symbol < log_probs.shape[1] and symbol != self.blank_id:
                mean = float(log_probs[position:end, symbol].mean())
                tokens.append(PathToken(symbol, position, end - 1, mean))
            position = end
        return tuple(tokens)

    def _heard(self, log_probs: Array, first: int, is_star: npt.NDArray[np.bool_]) -> tuple[PathToken, ...]:
        """What the greedy path has in the frames of a star."""
        part = log_probs[first : first + len(is_star)]
        symbols = np.where(is_star, part.argmax(axis=1), self.blank_id)
        tokens = join_repeats(part.max(axis=1).tolist(), symbols.tolist(), self.blank_id, first)
        return tuple(token for token in tokens if token.symbol_id != self.delimiter_id)
