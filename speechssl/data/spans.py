"""Which parts of which recordings a list of utterances has."""

from collections import defaultdict
from collections.abc import Iterable

from speechssl.data.manifest import Utterance
from speechssl.data.paths import real_path


class Spans:
    """Parts of recordings, however their paths are written."""

    def __init__(self, utterances: Iterable[Utterance]) -> None:
        self._names: dict[str, str] = {}
        self._spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for utterance in utterances:
            self._spans[self._name(utterance)].append(_span(utterance))

    def overlap(self, utterance: Utterance) -> bool:
        """Whether an utterance shares samples with one of them."""
        start, stop = _span(utterance)
        return any(first < stop and start < last for first, last in self._spans.get(self._name(utterance), ()))

    def _name(self, utterance: Utterance) -> str:
        path = utterance.path
        if path not in self._names:
            self._names[path] = real_path(path)
        return self._names[path]


def _span(utterance: Utterance) -> tuple[int, int]:
    return utterance.start, utterance.start + utterance.num_samples
