"""The pre-flight check: what would go wrong, or is suspicious, in the data of a training."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from unicodedata import category

import numpy as np

from speechssl.data.copies import Copies, listen
from speechssl.data.headers import Header, read_headers, read_size
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.paths import is_url, real_path, split_range
from speechssl.data.scan import parallel_map
from speechssl.data.spans import Spans
from speechssl.data.units import WORD_DELIMITER, Letters, Units, list_characters, num_frames_needed, split_words
from speechssl.errors import AudioError
from speechssl.frames import FrameGeometry
from speechssl.terminal import count

BASE_GEOMETRY = FrameGeometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
"""Of wav2vec 2.0's feature encoder."""

WARNINGS = frozenset(
    {"silence", "quiet", "loud", "clipped", "offset", "opposite phase", "length differs", "repeated text"}
    | {"shared speakers", "duplicate", "near duplicate", "near duplicate in another split"}
)
"""The kinds of problem that are suspicious only; all others are errors."""

_AT_ONCE = 10_000  # utterances of which all is in memory


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with the data."""

    kind: str  # in a few fixed words
    where: str  # the ``file:line`` of the utterance, or the file
    detail: str  # what was expected and found

    @property
    def is_error(self) -> bool:
        """Whether training would fail or its scores would be void."""
        return self.kind not in WARNINGS


def check_before_training(
    manifest: Manifest, geometry: FrameGeometry, vocabulary: Units | None, min_samples: int
) -> list[Problem]:
    """Find the errors that show without decoding audio: of ``min_samples`` at 16 kHz an utterance is long enough.

    The header of each distinct file among 10,000 utterances is read once. Of what states no length (MP3 without a tag,
    what only PyAV reads) the manifest's word is taken: whoever wrote it had decoded the recording. So it is of URLs, of
    which only the sizes of the objects are asked for: the headers of a million clips in an object store would be most
    of the clips.
    Without a vocabulary, training needs no labels.
    """
    problems: list[Problem] = []
    reported: set[str] = set()
    for first in range(0, len(manifest), _AT_ONCE):  # there may be more headers than memory has room for
        rows = list(enumerate(manifest.rows(first, min(first + _AT_ONCE, len(manifest))), first))
        headers = read_headers((row.path for _, row in rows if not is_url(row.path)), decode=False)
        problems += _find_file_problems(manifest, rows, headers, reported)
    return [
        *problems,
        *_find_object_problems(manifest),
        *_find_short_utterances(manifest, min_samples),
        *([] if vocabulary is None else _find_label_problems(manifest, geometry, vocabulary)),
    ]


def check_manifests(manifests: Sequence[Manifest], geometry: FrameGeometry, vocabulary: Units | None) -> list[Problem]:
    """Find all errors and warnings in the splits of a corpus, reading every utterance.

    Without a vocabulary, the letters of each manifest are its own.
    """
    headers = read_headers(utterance.path for manifest in manifests for utterance in manifest)
    problems: list[Problem] = []
    copies = Copies()
    for number, manifest in enumerate(manifests):
        file_problems = list(_find_file_problems(manifest, enumerate(manifest), headers, set()))
        problems += file_problems
        problems += _find_differing_lengths(manifest, headers)
        problems += _find_short_utterances(manifest, geometry.receptive_field_samples)
        bad = {problem.where for problem in file_problems}
        readable = [
            row
            for row, utterance in enumerate(manifest)
            if not isinstance(headers[utterance.path], AudioError) and manifest.where(row) not in bad
        ]
        problems += _find_audio_problems(manifest, number, readable, copies)
        # A manifest without any text is for pretraining.
        texts = [utterance.text.replace(WORD_DELIMITER, "") for utterance in manifest if utterance.text]
        if any(split_words(text) for text in texts):
            problems += _find_label_problems(manifest, geometry, vocabulary or Letters.from_texts(texts))
    return [
        *problems,
        *_find_duplicates(manifests, copies),
        *_find_overlaps(manifests),
        *_find_repeated_texts(manifests),
        *_find_shared_speakers(manifests),
    ]


def _find_file_problems(
    manifest: Manifest, rows: Iterable[tuple[int, Utterance]], headers: Mapping[str, Header], reported: set[str]
) -> Iterator[Problem]:
    """What headers say of numbered rows; a recording that is ``reported`` as unreadable is not reported again."""
    for i, utterance in rows:
        header, where = headers.get(utterance.path), manifest.where(i)
        stop = utterance.start + utterance.num_samples
        if header is None:
            continue
        if isinstance(header, AudioError):
            if utterance.path not in reported:
                yield Problem("unreadable", where, str(header))
            reported.add(utterance.path)
        elif header.sample_rate != utterance.sample_rate:
            detail = f"{utterance.path}: expected {utterance.sample_rate} samples a second, found {header.sample_rate}"
            yield Problem("sample rate", where, detail)
        elif stop > header.num_samples > 0:
            yield Problem("too long", where, f"{utterance.path}: expected {stop} samples, found {header.num_samples}")


def _find_object_problems(manifest: Manifest) -> Iterator[Problem]:
    """Objects behind URLs that are missing or end before a clip in them does, each once."""
    furthest: dict[str, tuple[int, int]] = {}  # the least size of an object, and the row that needs it
    for i, utterance in enumerate(manifest):
        if is_url(utterance.path):
            name, start, size = split_range(utterance.path) or (utterance.path, 0, 1)
            furthest[name] = max(furthest.get(name, (0, 0)), (start + size, i))
    found = parallel_map(read_size, list(furthest), "asking for sizes")
    for (name, (least, i)), size_or_error in zip(furthest.items(), found, strict=True):
        if isinstance(size_or_error, AudioError):
            yield Problem("unreadable", manifest.where(i), str(size_or_error))
        elif size_or_error < least:
            yield Problem("unreadable", manifest.where(i), f"{name}: expected {least} bytes, found {size_or_error}")


def _find_differing_lengths(manifest: Manifest, headers: Mapping[str, Header]) -> Iterator[Problem]:
    """A recording of which the manifest uses one span, from its start but not to its end, was perhaps replaced."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, utterance in enumerate(manifest):
        rows[utterance.path].append(i)
    for path, indices in rows.items():
        header, utterance = headers[path], manifest[indices[0]]
        if isinstance(header, AudioError) or len(indices) > 1 or utterance.start:
            continue
        if utterance.num_samples < header.num_samples:
            detail = f"{path}: expected {utterance.num_samples} samples, found {header.num_samples}"
            yield Problem("length differs", manifest.where(indices[0]), detail)


def _find_short_utterances(manifest: Manifest, min_samples: int) -> Iterator[Problem]:
    lengths = manifest.num_output_samples
    for i in np.flatnonzero(lengths < min_samples).tolist():
        detail = f"expected at least {min_samples} samples at 16 kHz, found {lengths[i]}"
        yield Problem("too short", manifest.where(i), detail)


def _find_label_problems(manifest: Manifest, geometry: FrameGeometry, vocabulary: Units) -> Iterator[Problem]:
    for i, utterance in enumerate(manifest):
        where, text = manifest.where(i), utterance.text or ""
        unknown = vocabulary.unknown_characters(text)
        if not split_words(text):
            yield Problem("empty text", where, "expected a text, found none")
        elif unknown:
            detail = f"expected characters of the vocabulary, found {list_characters(unknown)}"
            yield Problem("unknown characters", where, detail)
        else:
            needed = num_frames_needed(vocabulary.encode(text))
            found = geometry.num_frames(utterance.num_output_samples)
            if needed > found:
                detail = f"expected at least {needed} frames for the labels, found {found} ({utterance.seconds:.2f} s)"
                yield Problem("labels too long", where, detail)


def _find_audio_problems(manifest: Manifest, number: int, rows: Sequence[int], copies: Copies) -> Iterator[Problem]:
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        title = f"reading {manifest.path}" + (f", {first} of {len(rows)} done" if first else "")
        for row, heard in zip(part, parallel_map(listen, [manifest[row] for row in part], title), strict=True):
            if isinstance(heard, AudioError):
                yield Problem("unreadable", manifest.where(row), str(heard))
                continue
            copies.add((number, row), heard)
            for fault in heard.faults:
                yield Problem(fault.kind, manifest.where(row), f"{manifest[row].path}: {fault.detail}")


def _find_duplicates(manifests: Sequence[Manifest], copies: Copies) -> Iterator[Problem]:
    for found in copies.find():
        (one, first), (two, second) = found.original, found.copy
        original, copy = manifests[one][first], manifests[two][second]
        if one != two and real_path(original.path) == real_path(copy.path):
            continue  # an overlap
        kind = ("" if found.is_exact else "near ") + "duplicate" + (" in another split" if one != two else "")
        verb = "has the same samples as" if found.is_exact else "sounds like"
        detail = f"{copy.path}: {verb} {original.path} ({manifests[one].where(first)})"
        yield Problem(kind, manifests[two].where(second), detail)


def _find_shared_speakers(manifests: Sequence[Manifest]) -> Iterator[Problem]:
    """Find speakers who are in two manifests; one problem a pair of manifests."""
    speakers = [{utterance.speaker for utterance in manifest if utterance.speaker} for manifest in manifests]
    for (one, known), (two, names) in combinations(zip(manifests, speakers, strict=True), 2):
        if shared := sorted(known & names):
            listed = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
            detail = f"{len(shared)} of {count(len(names), 'speaker')} are also in {one.path}: {listed}"
            yield Problem("shared speakers", str(two.path), detail)


def _find_overlaps(manifests: Sequence[Manifest]) -> Iterator[Problem]:
    """Utterances that share samples with one in a manifest before theirs."""
    spans = [Spans(manifest) for manifest in manifests]
    for (one, known), (two, names) in combinations(zip(manifests, spans, strict=True), 2):
        for i, utterance in enumerate(two):
            if (row := known.overlap(utterance)) is not None:
                detail = f"{names.recording(utterance)}: shares samples with {one.where(row)}"
                yield Problem("overlap", two.where(i), detail)


def _find_repeated_texts(manifests: Sequence[Manifest]) -> list[Problem]:
    """Texts that occur in two manifests, letter case and punctuation aside; one problem a pair of manifests."""
    rows: list[dict[str, int]] = []
    for manifest in manifests:
        texts = [_essence(utterance.text or "") for utterance in manifest]
        rows.append({text: i for i, text in reversed(list(enumerate(texts))) if text})
    problems: list[Problem] = []
    for (one, first), (two, second) in combinations(zip(manifests, rows, strict=True), 2):
        shared = [text for text in second if text in first]
        if shared:
            text = min(shared, key=lambda text: second[text])
            detail = (
                f"{len(shared)} of {len(second)} different texts are also in {one.path}: "
                f"{text!r} in {two.where(second[text])} and {one.where(first[text])}"
            )
            problems.append(Problem("repeated text", str(two.path), detail))
    return problems


def _essence(text: str) -> str:
    """A text without what the same sentence may be written with or without: case and punctuation."""
    characters = " ".join(split_words(text)).casefold()
    return " ".join("".join(" " if category(c)[0] in "PS" else c for c in characters).split())
