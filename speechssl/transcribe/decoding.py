"""From what a model says of frames to a transcript: greedily or by a search, with calibrated confidences."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.units import Units
from speechssl.decode.calibration import Calibration
from speechssl.decode.greedy import PathToken, greedy_path
from speechssl.decode.hotwords import Hotwords
from speechssl.decode.hypotheses import Sentence
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.words import Word, frame_seconds, join_words, words_of_path
from speechssl.frames import FrameGeometry
from speechssl.transcribe.inference import Outputs
from speechssl.transcribe.transcript import Stretch, Transcript
from speechssl.transcribe.windows import WINDOW_SECONDS

if TYPE_CHECKING:
    from speechssl.decode.beam_search import BeamSearch


@dataclass(frozen=True)
class Decoding:
    """How text is made: by the greedy CTC path unless there is a search."""

    units: Units
    geometry: FrameGeometry
    beam_search: "BeamSearch | None" = None
    hotwords: Hotwords | None = None
    calibration: Calibration | None = None
    has_posteriors: bool = False  # whether words of a search know their posterior probabilities

    def describe(self) -> str:
        """Say it in a few words, for a table of results."""
        decoding = self.beam_search.config.describe() if self.beam_search else "greedy"
        return f"{decoding}, {self.hotwords.describe()}" if self.hotwords else decoding

    def transcript(self, outputs: Outputs, nbest: int | None) -> Transcript:
        """Transcribe a recording, with ``nbest`` texts of a beam search if they are asked for."""
        path, sentences = self._find_path(log_probs_of(outputs), nbest)
        return self._name_path(path, sentences if nbest else (), outputs.num_samples)

    def transcript_of_pieces(self, outputs: Outputs, nbest: int | None) -> Transcript:
        """Transcribe pieces of a recording, each for itself."""
        words: list[Word] = []
        stretches: list[Stretch] = []
        for piece, [log_probs] in outputs:
            path, sentences = self._find_path([log_probs], nbest)
            found = self._name_path(path, sentences if nbest else (), len(piece.samples))
            found = found.shifted(piece.start / SAMPLE_RATE)
            words += found.words
            stretches += found.nbest
        seconds, is_calibrated = outputs.num_samples / SAMPLE_RATE, self.calibration is not None
        return Transcript(join_words(words), seconds, tuple(words), is_calibrated, tuple(stretches))

    def calibrated(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        """Return words with calibrated confidences, if there is a calibration."""
        calibrate = self.calibration
        if calibrate is None:
            return words
        return tuple(replace(word, confidence=calibrate(word.confidence, word.posterior)) for word in words)

    def _name_path(self, path: Sequence[PathToken], sentences: Sequence[Sentence], num_samples: int) -> Transcript:
        """Return what a path says, and the texts of sentences, with times."""
        words = self.calibrated(words_of_path(path, self.units, self.geometry, num_samples))
        seconds = num_samples / SAMPLE_RATE
        at = partial(frame_seconds, geometry=self.geometry, num_samples=num_samples)
        ends = [0.0, *(at(sentence.first_frame) for sentence in sentences[1:]), seconds]
        stretches = (
            Stretch(start, end, sentence.hypotheses, sentence.lattice.mapped(at))
            for start, end, sentence in zip(ends, ends[1:], sentences, strict=False)
            if sentence.lattice is not None
        )
        return Transcript(join_words(words), seconds, words, self.calibration is not None, tuple(stretches))

    def _find_path(self, parts: Iterable[Tensor], nbest: int | None) -> tuple[list[PathToken], list[Sentence]]:
        """Return the path of the best text and, of a beam search, the sentences it was found in."""
        if self.beam_search is not None:
            has_lattices = nbest is not None or self.has_posteriors
            found = self.beam_search.find_sentences(parts, self.hotwords, nbest or 1, with_lattices=has_lattices)
            sentences = list(found)
            return self.beam_search.join_paths(sentences), sentences
        if self.hotwords is not None:
            return self.hotwords.find_path(parts), []
        return greedy_path(parts, self.units.blank_id), []


def log_probs_of(outputs: Outputs) -> Iterator[Tensor]:
    """The (S, V) log probabilities of each piece of a recording."""
    return (log_probs for _, [log_probs] in outputs)


def make_beam_search(config: BeamSearchConfig, checkpoint: CTCCheckpoint) -> "BeamSearch":
    """Prepare the search for a model: sentences are no longer than a window."""
    from speechssl.decode.beam_search import BeamSearch  # here, since its alignment needs torchaudio

    return BeamSearch(config, checkpoint.vocabulary, sentence_frames(checkpoint))


def sentence_frames(checkpoint: CTCCheckpoint) -> int:
    """The most frames of a sentence that is searched as a whole: those of a window."""
    return round(WINDOW_SECONDS * SAMPLE_RATE / checkpoint.model.encoder.geometry.hop_samples)
