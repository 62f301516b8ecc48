"""Turn rows of label files and recordings into labeled utterances."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from speechssl.data.check import BASE_GEOMETRY
from speechssl.data.corpus import Clip, Preparation
from speechssl.data.labels.label import Label
from speechssl.data.labels.names import RecordingNames
from speechssl.data.manifest import IMPOSSIBLE_IN_CELLS, Utterance
from speechssl.data.normalize import has_digits, normalize_labels
from speechssl.data.scan import find_recordings
from speechssl.data.units import WORD_DELIMITER, Letters, num_frames_needed
from speechssl.errors import ManifestError
from speechssl.terminal import print_status

COPIES = "unpacked"  # where run.sh has recordings decoded to, beside the folder data
MAX_LABELLED_SECONDS = 30.0  # fine-tuning leaves out what is longer
_NEAR_END_SECONDS = 0.1  # a duration that was rounded still means the whole recording


class Corpus:
    """Hold the recordings of a folder, and those that labels name elsewhere.

    Args:
        folder: Where they are.
        preparation: Keeps their headers and notes what is left out.

    Attributes:
        found: The recordings in the folder.
        headers: All readable recordings, each as one utterance; empty before `read_headers`.
        num_dropped: How much was left out, by the reason.

    Raises:
        ManifestError: there is no such folder, or none in it.
    """

    def __init__(self, folder: Path, preparation: Preparation) -> None:
        # Without links, so that a recording has one name however the labels call it.
        self.folder = folder.resolve()
        self.preparation = preparation
        self.num_dropped: Counter[str] = Counter()
        self.headers: dict[Path, Utterance] = {}
        self.found = self._without_copies(find_recordings(self.folder))
        if not self.found:
            raise ManifestError(f"CORPUS={folder}: expected recordings (.wav, .flac, .mp3, ...), found none")

    def _without_copies(self, paths: Sequence[Path]) -> list[Path]:
        """Leave out the copies that UNPACK=1 made below the corpus, which would bring test into training."""
        folders = {
            folder
            for parent in {path.parent for path in paths}
            for folder in (parent, *parent.parents)
            if folder.name == COPIES and folder != self.folder and folder.is_relative_to(self.folder)
        }
        copies = {folder for folder in folders if self._is_output(folder.parent / "data")}
        for folder in sorted(copies):
            print_status(f"{folder}: left out, copies of recordings")
        return [path for path in paths if copies.isdisjoint(path.parents)]

    def _is_output(self, folder: Path) -> bool:
        """Return whether this or an earlier preparation writes to the folder."""
        return folder.resolve() == self.preparation.folder.resolve() or (folder / "pretrain_train.tsv").exists()

    def drop(self, reason: str, what: str) -> None:
        """Note that something is not used."""
        self.num_dropped[reason] += 1
        self.preparation.drop(reason, what)

    def name(self, path: str | Path) -> str:
        """Return a recording's name, the same wherever the corpus lies."""
        path = Path(path)
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else path.as_posix()

    def read_headers(self, elsewhere: Sequence[Path]) -> None:
        """Read the headers of all recordings."""
        paths = sorted({*self.found, *elsewhere}, key=self.name)
        self.headers = {
            Path(whole.path): whole for whole in self.preparation.utterances([Clip(path) for path in paths])
        }

    @property
    def root(self) -> Path:
        """The deepest folder above all recordings."""
        return Path(os.path.commonpath([self.folder, *(path.parent for path in self.headers)]))


def make_utterances(
    corpus: Corpus, rows: Sequence[Label], labels: Path | None, language: str | None, as_is: bool
) -> tuple[list[Utterance], dict[Path, set[str]]]:
    """Turn labels into utterances; those that cannot be used are dropped.

    Args:
        corpus: The recordings, whose headers are read.
        rows: What is said in them.
        labels: The file or folder that says so.
        language: Of texts that state none.
        as_is: Whether texts are learned as they are written.

    Returns:
        The utterances by recording and start, and who speaks in which recording by all rows, dropped ones too.
    """
    folders = [] if labels is None else [labels if labels.is_dir() else labels.parent]
    names = RecordingNames(corpus.found, [corpus.folder, *folders])
    located = [(row, names.find(*row.paths)) for row in rows]
    names.report(str(labels or corpus.folder))
    corpus.read_headers([path for _, path in located if path is not None])
    voices: dict[Path, set[str]] = defaultdict(set)
    spans: dict[tuple[str, int, int], list[tuple[Label, Utterance]]] = defaultdict(list)
    for row, path in located:
        if path is None:
            corpus.drop("text of a recording that is missing", f"{row.where}: {names.describe(*row.paths)}")
            continue
        if row.speaker:
            voices[path].add(row.speaker)
        if path not in corpus.headers:
            corpus.drop("text of a recording that cannot be read", f"{row.where}: {path}")
            continue
        utterance = _utterance(corpus, row, corpus.headers[path], row.language or language, as_is)
        if utterance is not None:
            spans[corpus.name(path), utterance.start, utterance.num_samples].append((row, utterance))
    utterances = []
    for _, named in sorted(spans.items()):
        is_clear = len({utterance.text for _, utterance in named}) == 1
        for row, _ in named[is_clear:]:
            corpus.drop("span named before" if is_clear else "span with several texts", row.where)
        utterances += [named[0][1]] if is_clear else []
    return utterances, voices


def _utterance(corpus: Corpus, row: Label, whole: Utterance, language: str | None, as_is: bool) -> Utterance | None:
    text = unicodedata.normalize("NFC", row.text) if as_is else normalize_labels(row.text, language)
    start = round(row.start * whole.sample_rate)
    end = whole.num_samples if row.end is None else min(round(row.end * whole.sample_rate), whole.num_samples)
    if not start and whole.num_samples - end < _NEAR_END_SECONDS * whole.sample_rate:
        end = whole.num_samples
    if not text:
        corpus.drop("empty text", row.where)
    elif as_is and WORD_DELIMITER in text:
        corpus.drop(f"text with {WORD_DELIMITER}, which stands for the space", row.where)
    elif not as_is and has_digits(text):
        corpus.drop("text with digits: spell them out", f"{row.where}: {text}")
    elif IMPOSSIBLE_IN_CELLS.search(text + (row.speaker or "") + (language or "")):
        corpus.drop("text or speaker with bytes that are no UTF-8", row.where)
    elif start >= end:
        corpus.drop("span outside its recording", f"{row.where}: {row.start:g} of {whole.seconds:.2f} s")
    elif end - start > MAX_LABELLED_SECONDS * whole.sample_rate:
        limit = f"longer than {MAX_LABELLED_SECONDS:.0f} s with a text: cut it, or give start and end"
        corpus.drop(limit, f"{row.where}: {(end - start) / whole.sample_rate:.1f} s")
    else:
        said = {"text": text, "speaker": row.speaker, "language": language}
        utterance = replace(whole, start=start, num_samples=end - start, **said)
        needed = num_frames_needed(Letters.from_texts([text]).encode(text))
        if needed <= BASE_GEOMETRY.num_frames(utterance.num_output_samples):
            return utterance
        corpus.drop("text too long for its audio", f"{row.where}: {len(text)} letters in {utterance.seconds:.2f} s")
    return None
