"""Utterances that are copies of others, found in one pass over the audio with 80 bytes of memory for each."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from speechssl.data.fingerprint import NUM_BYTES, Fingerprint, fingerprint, similar_pairs
from speechssl.data.levels import Fault
from speechssl.data.manifest import Utterance
from speechssl.data.recording import read_span
from speechssl.errors import AudioError

Place = tuple[int, int]  # the number of the manifest, and of its row


@dataclass(frozen=True, slots=True)
class Copy:
    """An utterance that another one, further down, has the same samples as, or sounds like."""

    original: Place
    copy: Place
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """What listening to an utterance tells."""

    faults: list[Fault]
    digest: int  # of its samples
    fingerprint: Fingerprint | None


def listen(utterance: Utterance) -> Heard | AudioError:
    """Read an utterance once."""
    try:
        samples, levels = read_span(utterance.path, start=utterance.start, num_samples=utterance.num_samples)
    except AudioError as error:
        return error
    digest = hashlib.blake2b(samples.tobytes(), digest_size=8).digest()
    return Heard(levels.faults(), int.from_bytes(digest), fingerprint(samples, levels.sample_rate))


class Copies:
    """What is remembered of utterances, to find those that are copies of others."""

    def __init__(self) -> None:
        self.splits, self.rows, self.digests = array("i"), array("i"), array("Q")
        self.bits, self.spreads = bytearray(), array("f")

    def add(self, place: Place, heard: Heard) -> None:
        """Remember an utterance; one without any sound has no copies."""
        if heard.fingerprint is not None:
            self.splits.append(place[0])
            self.rows.append(place[1])
            self.digests.append(heard.digest)
            self.bits += heard.fingerprint.bits
            self.spreads.append(heard.fingerprint.spread)

    def find(self) -> Iterator[Copy]:
        """Yield for each copy one original: rather in another manifest, and rather of the same samples."""
        if not self.rows:
            return
        _, firsts, groups = np.unique(np.array(self.digests), return_index=True, return_inverse=True)
        found: dict[int, tuple[bool, bool, int]] = {}

        def note(one: int, two: int, is_exact: bool) -> None:
            found[two] = max(found.get(two, (False, False, 0)), (self.splits[one] != self.splits[two], is_exact, -one))

        for row in np.flatnonzero(firsts[groups] != np.arange(len(groups))).tolist():
            note(int(firsts[groups[row]]), row, True)
        rows = np.sort(firsts)
        bits = np.frombuffer(self.bits, np.uint8).reshape(-1, NUM_BYTES)[rows]
        for one, two in similar_pairs(bits, np.array(self.spreads)[rows]):
            note(int(rows[one]), int(rows[two]), False)
        for row, (_, is_exact, original) in sorted(found.items()):
            yield Copy(self._place(-original), self._place(row), is_exact)

    def _place(self, number: int) -> Place:
        return self.splits[number], self.rows[number]
