"""Audio in, text out: a fine-tuned model that transcribes recordings."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy.typing as npt
import torch
from torch import Tensor

from speechssl.checkpoint.calibration_file import CalibrationFile
from speechssl.checkpoint.reader import load_ctc
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.audio import SAMPLE_RATE, Waveform, as_waveform
from speechssl.data.recording import Recording
from speechssl.data.sources import is_buffer, source_name
from speechssl.decode.calibration import Calibration
from speechssl.decode.hotwords import Hotwords
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import AudioError, ConfigError, SpeechSSLError
from speechssl.model.ctc import CTCModel
from speechssl.model.device import Precision
from speechssl.transcribe.align import Alignment, WordAligner, spell
from speechssl.transcribe.decoding import Decoding, log_probs_of, make_beam_search, sentence_frames
from speechssl.transcribe.inference import BATCH_SECONDS, Inference, Outputs, Source, make_results
from speechssl.transcribe.listener import make_listener
from speechssl.transcribe.pauses import VAD, cut_at_pauses, speech_finder
from speechssl.transcribe.stream import PartialTranscript, stream_transcripts
from speechssl.transcribe.transcript import Transcript
from speechssl.transcribe.windows import cut_windows

if TYPE_CHECKING:
    from speechssl.decode.beam_search import BeamSearch

Audio = str | os.PathLike[str] | BinaryIO | npt.ArrayLike | Tensor
Open = Callable[[], Waveform | Recording]


class Transcriber:
    """A model that turns recordings into text: by its greedy CTC path, or with a language model by beam search.

    Recordings longer than a minute are transcribed in overlapping windows, in constant memory.
    """

    def __init__(
        self,
        checkpoint: CTCCheckpoint,
        beam_search: "BeamSearch | None" = None,
        precision: Precision | None = None,
        hotwords: Hotwords | None = None,
        calibration: Calibration | None = None,
        has_posteriors: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.geometry = checkpoint.model.encoder.geometry
        units = checkpoint.vocabulary
        self.decoding = Decoding(units, self.geometry, beam_search, hotwords, calibration, has_posteriors)
        self.inference = Inference(
            partial(_run, checkpoint.model),  # which can be pickled
            self.geometry,
            next(checkpoint.model.parameters()).device,
            precision,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str | None = None,
        lm: str | os.PathLike[str] | None = None,
        precision: Precision | None = None,
        language: str | None = None,
        hotwords: str | os.PathLike[str] | None = None,
        *,
        calibrated: bool = True,
    ) -> Self:
        """Load a fine-tuned model.

        Args:
            path: As for `read_model`, as is ``language``.
            device: A torch device such as ``cpu`` or ``cuda:1``; None is the GPU if there is one.
            lm: A language model for beam search: an ARPA file, or the TOML file that ``speechssl tune-lm`` wrote; None
                is greedy decoding.
            precision: ``float32``, ``bfloat16`` or ``float16``; None is float32 on a CPU and 16 bits on a GPU.
            hotwords: A table of phrases to listen for, as `Hotwords.read` takes it.
            calibrated: Whether confidences are calibrated where ``speechssl calibrate`` has fitted that. If not, words
                of a beam search have the posteriors that it needs.

        Raises:
            CheckpointError: there is no fine-tuned model, or no such device, or its calibration is malformed.
            ConfigError, LanguageModelError: the language model or the hot words cannot be read, or the model can spell
                none of their words.
        """
        config = None if lm is None else BeamSearchConfig.read(Path(lm))
        checkpoint = load_ctc(os.fspath(path), device, language)
        beam_search = None if config is None else make_beam_search(config, checkpoint)
        phrases = None
        if hotwords is not None:
            phrases = Hotwords.read(Path(hotwords), checkpoint.vocabulary, sentence_frames(checkpoint), language)
        files = checkpoint.weights_files
        calibration = (
            CalibrationFile.of(files, None if lm is None else Path(lm)).read() if files and calibrated else None
        )
        has_posteriors = calibration.posterior_slope > 0 if calibration else not calibrated
        return cls(checkpoint, beam_search, precision, phrases, calibration, has_posteriors)

    def transcribe(
        self,
        audio: Audio,
        sample_rate: int | None = None,
        *,
        channel: int | None = None,
        start: float | None = None,
        end: float | None = None,
        split_at_pauses: bool = False,
        vad: VAD = "energy",
        nbest: int | None = None,
    ) -> Transcript:
        """Transcribe one recording.

        Args:
            audio: A path, an open binary file or the bytes of one, in any format that `read_audio` knows; or samples
                in [-1, 1], (T,) or (T, channels), or what the datasets library has: a dict with ``array``
                and ``sampling_rate``, or a decoder of torchcodec.
            sample_rate: The rate of the samples in Hz; a file knows its own.
            channel: The channel of a file to transcribe, counted from 1; None is the mean of all.
            start: Seconds at which to start in a file; times still count from the start of the recording.
            end: Seconds at which to stop in a file.
            split_at_pauses: Process each piece between two pauses by itself, as the utterances of most corpora are:
                `cut_at_pauses` says where. Otherwise a recording is processed in one piece, or in windows of a minute.
            vad: What tells speech from pauses: ``energy``, or ``silero`` (Silero VAD, the extra ``vad``), which finds
                voices in noise and music.
            nbest: How many of the likeliest texts of the beam search to keep, as `Transcript.nbest`; None is none.

        Raises:
            AudioError: the recording cannot be read, samples come without a rate, or there is not enough memory.
            ConfigError: there is no such ``vad``, or its package is missing, or no language model beside ``nbest``.
            ValueError: the end is not after the start.
        """
        name, source = _open_audio(audio, sample_rate, channel, start, end)
        [transcript] = self.transcribe_many([lambda: source], BATCH_SECONDS, split_at_pauses, vad, [name], nbest)
        if isinstance(transcript, SpeechSSLError):
            raise transcript
        return transcript.shifted(start or 0)

    def transcribe_many(
        self,
        sources: Iterable[Open],
        batch_seconds: float = BATCH_SECONDS,
        split_at_pauses: bool = False,
        vad: VAD = "energy",
        names: Iterable[str] | None = None,
        nbest: int | None = None,
    ) -> Iterator[Transcript | SpeechSSLError]:
        """Transcribe any number of recordings, those of similar lengths together.

        Args:
            sources: Functions that give a recording each, or raise a `SpeechSSLError`. They are called in order, in
                another thread, a few minutes of audio ahead of the results.
            batch_seconds: Bound on the audio of a batch, padding included; a longer recording is a batch of its own.
            split_at_pauses: As for `transcribe`.
            vad: As for `transcribe`.
            names: What errors call the recordings; by default "recording 1" and so on.
            nbest: As for `transcribe`.

        Yields:
            In the order of the sources, a transcript each, or the error that prevented it.

        Raises:
            ConfigError: there is no such ``vad``, or its package is missing, or no language model beside ``nbest``.
        """
        if nbest is not None and self.decoding.beam_search is None:
            raise ConfigError("nbest: expected a language model beside it, for its beam search, found none")
        if split_at_pauses:
            cut, make = partial(cut_at_pauses, find_speech=speech_finder(vad)), self.decoding.transcript_of_pieces
        else:
            cut, make = partial(cut_windows, geometry=self.geometry), self.decoding.transcript
        make_transcript = partial(make, nbest=nbest)
        yield from make_results(self.inference.run(_named(sources, names), cut, batch_seconds), make_transcript)

    def align(self, audio: Audio, text: str, sample_rate: int | None = None) -> Alignment:
        """Find when each word of a text was said in one recording of any length.

        Args:
            audio, sample_rate: As for `transcribe`.
            text: As it is written; punctuation and capitals are kept, and what the model cannot spell is noted.

        Raises:
            AudioError: as for `transcribe`.
        """
        name, source = _open_audio(audio, sample_rate)
        [result] = self.align_many([lambda: source], [text], names=[name])
        if isinstance(result, SpeechSSLError):
            raise result
        return result

    def align_many(
        self, sources: Iterable[Open], texts: Iterable[str], names: Iterable[str] | None = None
    ) -> Iterator[Alignment | SpeechSSLError]:
        """Find when each word of a given text was said, recording by recording, in constant memory.

        Args:
            sources, names: As for `transcribe_many`.
            texts: What is said in each, as it is written.

        Yields:
            In the order of the sources, an alignment each, or the error that prevented it.
        """
        units = self.checkpoint.vocabulary
        aligner = WordAligner(units, self.geometry)
        pending = iter(texts)

        def make_alignment(outputs: Outputs) -> Alignment:
            words, notes = spell(next(pending), units)
            placed = list(aligner.place(log_probs_of(outputs), words))
            num_samples = outputs.num_samples
            return Alignment(num_samples / SAMPLE_RATE, tuple(aligner.name(placed, words, num_samples)), tuple(notes))

        cut = partial(cut_windows, geometry=self.geometry)
        yield from make_results(self.inference.run(_named(sources, names), cut), make_alignment)

    def log_probs_many(
        self, sources: Iterable[Open], names: Iterable[str] | None = None
    ) -> Iterator[Tensor | SpeechSSLError]:
        """Compute what the model says of each frame, before any text is made of it.

        Args:
            sources, names: As for `transcribe_many`.

        Yields:
            (S, V) float32 natural logarithms each, on the CPU, or the error that prevented them.
        """
        none = torch.empty(0, len(self.checkpoint.vocabulary))
        cut = partial(cut_windows, geometry=self.geometry)
        all_outputs = self.inference.run(_named(sources, names), cut)
        yield from make_results(all_outputs, lambda outputs: torch.cat([none, *log_probs_of(outputs)]))

    def stream(
        self, chunks: Iterable[npt.ArrayLike], sample_rate: int, step_seconds: float | None = None
    ) -> Iterator[PartialTranscript]:
        """Transcribe audio while it is recorded; `stream_transcripts` says what that can and cannot do.

        A causal model transcribes each chunk as it comes, exactly as in the whole; any other one in windows.

        Args:
            chunks: Samples as they come, in the types and shapes that `transcribe` takes.
            sample_rate: Of the chunks, in Hz.
            step_seconds: New audio from one result to the next; None is `STEP_SECONDS`, or the chunk if the model is
                causal.

        Yields:
            A result each time the model has run, the last one with everything that was left.

        Raises:
            ConfigError: the transcriber has a language model or hot words.
        """
        for is_there, name in (
            (self.decoding.beam_search, "a language model"),
            (self.decoding.hotwords, "hot words"),
        ):
            if is_there is not None:
                raise ConfigError(f"stream: expected a transcriber without {name}, for which it takes whole sentences")

        listener = make_listener(self.checkpoint.model, self.inference)
        units = self.checkpoint.vocabulary
        partials = stream_transcripts(chunks, sample_rate, step_seconds, listener, units, self.geometry)
        return (replace(partial, words=self.decoding.calibrated(partial.words)) for partial in partials)


def _open_audio(
    audio: Any,
    sample_rate: int | None,
    channel: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[str, Waveform | Recording]:
    """Return what errors call a recording, and the recording."""
    if isinstance(audio, str | os.PathLike) or hasattr(audio, "read") or is_buffer(audio):
        if sample_rate is not None:
            raise AudioError(f"{source_name(audio)}: expected no sample_rate beside a file, found {sample_rate}")
        return source_name(audio), Recording(audio, channel, start, end)
    if not channel is start is end is None:
        raise AudioError("array: expected neither channel nor start nor end beside samples, which can be sliced")
    return "array", as_waveform(audio, sample_rate)


def _run(model: CTCModel, waveforms: Tensor, lengths: Tensor | None) -> list[Tensor]:
    return [model(waveforms, lengths).log_probs]


def _named(sources: Iterable[Open], names: Iterable[str] | None) -> Iterator[Source]:
    return zip(names or (f"recording {number}" for number in count(1)), sources, strict=False)
