"""Which parts of which recordings a list of utterances has."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate

from speechssl.data.manifest import Utterance
from speechssl.data.paths import real_path


class Spans:
    """Parts of recordings, however their paths are written."""

    def __init__(self, utterances: Iterable[Utterance]) -> None:
        self._names: dict[str, str] = {}
        spans: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for row, utterance in enumerate(utterances):
            spans[self.recording(utterance)].append((*_span(utterance), row))
        self._starts: dict[str, list[int]] = {}
        self._furthest: dict[str, list[tuple[int, int]]] = {}  # of those up to each: the latest stop, and whose
        for name, of_recording in spans.items():
            of_recording.sort()
            self._starts[name] = [start for start, _, _ in of_recording]
            self._furthest[name] = list(accumulate(((stop, row) for _, stop, row in of_recording), max))

    def overlap(self, utterance: Utterance) -> int | None:
        """Return the number of one of them that an utterance shares samples with, None if there is none."""
        start, stop = _span(utterance)
        name = self.recording(utterance)
        number = bisect_left(self._starts.get(name, ()), stop)  # of those that begin before it ends
        if not number:
            return None
        furthest, row = self._furthest[name][number - 1]
        return row if furthest > start else None

    def recording(self, utterance: Utterance) -> str:
        """Return the real path of an utterance's recording."""
        path = utterance.path
        if path not in self._names:
            self._names[path] = real_path(path)
        return self._names[path]


def _span(utterance: Utterance) -> tuple[int, int]:
    return utterance.start, utterance.start + utterance.num_samples
