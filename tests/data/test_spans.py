import os
import random

import pytest

from speechssl.data.manifest import Utterance
from speechssl.data.spans import Spans


@pytest.mark.parametrize("seed", range(20))
def test_an_overlap_is_found_if_there_is_one(seed: int) -> None:
    """Among spans of any length, some inside others, in two recordings, one of which has two names."""
    generator = random.Random(seed)

    def draw(number: int) -> list[Utterance]:
        paths = [generator.choice(["a", "b", f"{os.curdir}/b"]) for _ in range(number)]
        return [Utterance(path, generator.randint(1, 12), start=generator.randint(0, 100)) for path in paths]

    def samples(utterance: Utterance) -> set[tuple[str, int]]:
        places = range(utterance.start, utterance.start + utterance.num_samples)
        return {(os.path.realpath(utterance.path), place) for place in places}

    known = draw(8)
    spans = Spans(known)
    found = []
    for utterance in draw(60):
        row = spans.overlap(utterance)
        if row is None:
            assert not any(samples(utterance) & samples(other) for other in known)
        else:
            assert samples(utterance) & samples(known[row])
        found.append(row)
    assert None in found
    assert any(row is not None for row in found)
    assert Spans([]).overlap(known[0]) is None
