"""Audio in, text out: a fine-tuned model that transcribes recordings."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechssl.checkpoint.native import CTCCheckpoint, load_ctc
from speechssl.data.audio import SAMPLE_RATE, Waveform, as_waveform
from speechssl.data.recording import Recording
from speechssl.decode.beam_search import BeamSearch
from speechssl.decode.greedy import PathToken, greedy_path
from speechssl.decode.settings import BeamSearchConfig
from speechssl.decode.words import Word, words_of_path
from speechssl.errors import AudioError, ConfigError, SpeechSSLError
from speechssl.model.ctc import CTCOutput
from speechssl.model.moments import WaveformMoments, measure_waveforms
from speechssl.transcribe.batches import is_out_of_memory, pad_waveforms, plan_batches, prefetch
from speechssl.transcribe.pauses import VAD, FindSpeech, Piece, cut_at_pauses, speech_finder
from speechssl.transcribe.stream import STEP_SECONDS, PartialTranscript, stream_transcripts
from speechssl.transcribe.transcript import Transcript
from speechssl.transcribe.windows import (
    WINDOW_SECONDS,
    Blocks,
    CountedBlocks,
    cut_windows,
    length_of,
    whole_or_blocks,
    window_moments,
)

BATCH_SECONDS = 60.0
_POOL_BATCHES = 4  # read before they are sorted by length
_POOL_SOURCES = 256

Audio = str | os.PathLike[str] | BinaryIO | npt.ArrayLike | Tensor


class Transcriber:
    """A model that turns recordings into text: by its greedy CTC path, or with a language model by beam search.

    Recordings longer than a minute are transcribed in overlapping windows, in constant memory; ``windows.py`` says how
    near that comes to the whole.

    Args:
        checkpoint: A model with its vocabulary, on the device to use.
        beam_search: With the language model, as `make_beam_search` gives it; None is greedy decoding.
    """

    def __init__(self, checkpoint: CTCCheckpoint, beam_search: BeamSearch | None = None) -> None:
        self.checkpoint = checkpoint
        self.beam_search = beam_search
        self.device = next(checkpoint.model.parameters()).device
        self.geometry = checkpoint.model.encoder.geometry
        # On a CPU ten seconds keep all of it busy: there is nothing to gain that would pay for padding.
        self._min_fill = 0.9 if self.device.type == "cpu" else 0.5

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str | None = None, lm: str | os.PathLike[str] | None = None
    ) -> Self:
        """Load a model folder, or the best model of a run folder.

        Args:
            path: The folder.
            device: A torch device such as ``cpu`` or ``cuda:1``; None is the GPU if there is one.
            lm: A language model for beam search: an ARPA file, or the TOML file that ``speechssl tune-lm`` wrote; None
                is greedy decoding.

        Raises:
            CheckpointError: there is no fine-tuned model, or no such device.
            ConfigError: the TOML file is missing or has other settings.
            LanguageModelError: the language model cannot be read, or has no word that the model can spell.
        """
        config = None if lm is None else BeamSearchConfig.read(Path(lm))
        checkpoint = load_ctc(Path(path), device)
        return cls(checkpoint, None if config is None else make_beam_search(config, checkpoint))

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
    ) -> Transcript:
        """Transcribe one recording.

        Args:
            audio: A path or an open binary file, in any format that `read_audio` knows; or samples in [-1, 1], (T,)
                or (T, channels).
            sample_rate: The rate of the samples in Hz; a file knows its own.
            channel: The channel of a file to hear, counted from 1; None is the mean of all.
            start: Seconds from which on a file is heard; times still count from the start of the recording.
            end: Seconds until which a file is heard.
            split_at_pauses: Hear each piece between two pauses by itself, as the utterances of most corpora are:
                `cut_at_pauses` says where. Otherwise a recording is heard as a whole, or in windows of a minute.
            vad: What tells speech from pauses: ``energy``, or ``silero`` (Silero VAD, the extra ``vad``), which hears
                voices over noise and music.

        Raises:
            AudioError: the recording cannot be read, samples come without a rate, or there is not enough memory.
            ConfigError: there is no such ``vad``, or its package is missing.
            ValueError: the end is not after the start.
        """
        find_speech = speech_finder(vad) if split_at_pauses else None
        source: Any = audio
        if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
            if sample_rate is not None:
                raise AudioError(f"{source}: expected no sample_rate beside a file, found {sample_rate}")
            recording = whole_or_blocks(Recording(source, channel, start, end))
            return self._transcribe([recording], find_speech)[0].shifted(start or 0)
        if not channel is start is end is None:
            raise AudioError("array: expected neither channel nor start nor end beside samples, which can be sliced")
        return self._transcribe([whole_or_blocks(as_waveform(source, sample_rate))], find_speech)[0]

    def transcribe_waveforms(self, waveforms: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe recordings as one batch; those longer than a window by themselves.

        Args:
            waveforms: (T,) each, mono at 16 kHz, as `read_audio` gives them.

        Returns:
            A transcript each. One shorter than a frame has no text.

        Raises:
            AudioError: there is not enough memory.
        """
        return self._transcribe([whole_or_blocks(waveform) for waveform in waveforms])

    def transcribe_many(
        self,
        sources: Iterable[Callable[[], Waveform | Recording]],
        batch_seconds: float = BATCH_SECONDS,
        split_at_pauses: bool = False,
        vad: VAD = "energy",
    ) -> Iterator[Transcript | SpeechSSLError]:
        """Transcribe any number of recordings, those of similar lengths together.

        Args:
            sources: Functions that give a recording each, or raise a `SpeechSSLError`. They are called in order, in
                another thread, a few minutes of audio ahead of the results.
            batch_seconds: Bound on the audio of a batch, padding included; a longer recording is a batch of its own.
            split_at_pauses: As for `transcribe`.
            vad: As for `transcribe`.

        Yields:
            In the order of the sources, a transcript each, or the error that prevented it.

        Raises:
            ConfigError: there is no such ``vad``, or its package is missing.
        """
        find_speech = speech_finder(vad) if split_at_pauses else None
        for pool in prefetch(self._read_pools(sources, batch_seconds)):
            yield from self._transcribe_pool(pool, batch_seconds, find_speech)

    def log_probs(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """What the model says of each frame, before any text is made of it.

        Args:
            waveforms: As for `transcribe_waveforms`.

        Returns:
            (S, V) float32 natural logarithms each, on the CPU; one shorter than a frame has no frames.

        Raises:
            AudioError: there is not enough memory.
        """
        found = [torch.empty(0, len(self.checkpoint.vocabulary)) for _ in waveforms]
        short: list[int] = []
        for number, waveform in enumerate(waveforms):
            if not isinstance(recording := whole_or_blocks(waveform), np.ndarray):
                found[number] = torch.cat([part.cpu() for part in self._score_windows(recording)])
            elif self.geometry.num_frames(len(waveform)) > 0:  # without a single frame it cannot pass the convolutions
                short.append(number)
        if short:
            output = self._score([waveforms[number] for number in short])
            for number, row, length in zip(short, output.log_probs.cpu(), output.frame_lengths.tolist(), strict=True):
                found[number] = row[:length]
        return found

    def stream(
        self, chunks: Iterable[npt.ArrayLike], sample_rate: int, step_seconds: float = STEP_SECONDS
    ) -> Iterator[PartialTranscript]:
        """Transcribe audio while it is recorded; `stream_transcripts` says what that can and cannot do.

        Args:
            chunks: Samples as they come, in the types and shapes that `transcribe` takes.
            sample_rate: Of the chunks, in Hz.
            step_seconds: New audio from one result to the next.

        Yields:
            A result each time the model has run, the last one at the end of the chunks with everything that was left.

        Raises:
            AudioError: the samples are not as they should be, or there is not enough memory.
            ConfigError: the transcriber has a language model, which needs whole sentences.
        """
        if self.beam_search is not None:
            raise ConfigError("stream: expected a transcriber without a language model, which needs whole sentences")

        def score(samples: Waveform, moments: WaveformMoments) -> Tensor:
            return self._score([samples], moments).log_probs[0]

        return stream_transcripts(chunks, sample_rate, step_seconds, score, self.checkpoint.vocabulary, self.geometry)

    def _read_pools(
        self, sources: Iterable[Callable[[], Waveform | Recording]], batch_seconds: float
    ) -> Iterator[list[Waveform | Blocks | SpeechSSLError]]:
        """Recordings in their order, as many at a time as make a few batches."""
        pool: list[Waveform | Blocks | SpeechSSLError] = []
        num_samples = 0.0
        for source in sources:
            try:
                pool.append(recording := whole_or_blocks(source()))
                num_samples += length_of(recording)
            except SpeechSSLError as error:
                pool.append(error)
            if num_samples >= _POOL_BATCHES * batch_seconds * SAMPLE_RATE or len(pool) == _POOL_SOURCES:
                yield pool
                pool, num_samples = [], 0.0
        yield pool

    def _transcribe_pool(
        self,
        pool: Sequence[Waveform | Blocks | SpeechSSLError],
        batch_seconds: float,
        find_speech: FindSpeech | None,
    ) -> Iterator[Transcript | SpeechSSLError]:
        """The results of a pool in its order, each as soon as all before it are known."""
        results: dict[int, Transcript | SpeechSSLError] = {}
        recordings: dict[int, Waveform | Blocks] = {}
        for number, item in enumerate(pool):
            if isinstance(item, SpeechSSLError):
                results[number] = item
            else:
                recordings[number] = item
        lengths = {number: length_of(recording) for number, recording in recordings.items()}
        num_given = 0
        for batch in plan_batches(lengths, batch_seconds * SAMPLE_RATE, self._min_fill):
            found = self._try([recordings[number] for number in batch], find_speech, batch_seconds)
            results.update(zip(batch, found, strict=True))
            while num_given in results:
                yield results[num_given]
                num_given += 1
        yield from (results[number] for number in range(num_given, len(pool)))

    def _try(
        self, recordings: Sequence[Waveform | Blocks], find_speech: FindSpeech | None, batch_seconds: float
    ) -> Sequence[Transcript | SpeechSSLError]:
        """Together, or if there is not enough memory for that, one by one."""
        try:
            return self._transcribe(recordings, find_speech, batch_seconds)
        except SpeechSSLError as error:
            if len(recordings) == 1:
                return [error]
        return [result for recording in recordings for result in self._try([recording], find_speech, batch_seconds)]

    def _transcribe(
        self,
        recordings: Sequence[Waveform | Blocks],
        find_speech: FindSpeech | None = None,
        batch_seconds: float = BATCH_SECONDS,
    ) -> list[Transcript]:
        """Those that fit into a window as one batch, the others, or the pieces of each, by themselves."""
        if find_speech:
            many = ([recording] if isinstance(recording, np.ndarray) else recording for recording in recordings)
            return [self._transcribe_pieces(blocks, find_speech, batch_seconds) for blocks in many]
        log_probs = iter(self.log_probs([recording for recording in recordings if isinstance(recording, np.ndarray)]))
        return [
            self._make_transcript(self._find_path([next(log_probs)]), len(recording))
            if isinstance(recording, np.ndarray)
            else self._transcribe_windows(recording)
            for recording in recordings
        ]

    def _transcribe_pieces(self, blocks: Blocks, find_speech: FindSpeech, batch_seconds: float) -> Transcript:
        counted = CountedBlocks(blocks)
        words: list[Word] = []
        for pool in prefetch(_pools(cut_at_pauses(counted, find_speech))):
            lengths = {number: len(piece.samples) for number, piece in enumerate(pool)}
            found: dict[int, Transcript] = {}
            for batch in plan_batches(lengths, batch_seconds * SAMPLE_RATE, self._min_fill):
                found.update(zip(batch, self._transcribe([pool[number].samples for number in batch]), strict=True))
            for number, piece in enumerate(pool):
                words += found[number].shifted(piece.start / SAMPLE_RATE).words
        return Transcript(" ".join(word.text for word in words), counted.num_samples / SAMPLE_RATE, tuple(words))

    def _transcribe_windows(self, blocks: Blocks) -> Transcript:
        counted = CountedBlocks(blocks)
        return self._make_transcript(self._find_path(self._score_windows(counted)), counted.num_samples)

    def _score_windows(self, blocks: Blocks) -> Iterator[Tensor]:
        """The log probabilities of the frames of a long recording, window by window."""
        moments = window_moments(self.checkpoint.model.encoder.config, blocks)
        for window in prefetch(cut_windows(blocks, self.geometry)):
            yield self._score([window.samples], moments).log_probs[0, window.first_kept : window.stop_kept]

    def _find_path(self, parts: Iterable[Tensor]) -> list[PathToken]:
        if self.beam_search is None:
            return greedy_path(parts, self.checkpoint.vocabulary.blank_id)
        return self.beam_search.find_path(parts)

    def _make_transcript(self, path: Sequence[PathToken], num_samples: int) -> Transcript:
        vocabulary = self.checkpoint.vocabulary
        text = vocabulary.decode(token.symbol_id for token in path)
        words = words_of_path(path, vocabulary, self.geometry, num_samples)
        return Transcript(text, num_samples / SAMPLE_RATE, words)

    @torch.inference_mode()
    def _score(self, waveforms: Sequence[Waveform], moments: WaveformMoments | None = None) -> CTCOutput:
        """The model's word on a batch, normalized by the statistics of its rows or by those given."""
        batch, lengths = pad_waveforms(waveforms)
        try:
            on_device = batch.to(self.device), None if lengths is None else lengths.to(self.device)
            if moments is None:
                # In float64, which of all devices Apple's lack.
                exact = (batch, lengths) if self.device.type == "mps" else on_device
                moments = measure_waveforms(*exact, self.geometry)
            output: CTCOutput = self.checkpoint.model(*on_device, moments=moments)
            return output
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            seconds = batch.numel() / SAMPLE_RATE
            raise AudioError(f"not enough memory on {self.device} for {seconds:.0f} s of audio at once") from None


def make_beam_search(config: BeamSearchConfig, checkpoint: CTCCheckpoint) -> BeamSearch:
    """The search for a model: sentences are no longer than a window.

    Raises:
        LanguageModelError: the language model cannot be read, or has no word that the model can spell.
    """
    hop_samples = checkpoint.model.encoder.geometry.hop_samples
    return BeamSearch(config, checkpoint.vocabulary, round(WINDOW_SECONDS * SAMPLE_RATE / hop_samples))


def _pools(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in their order, as many at a time as make a few batches."""
    pool: list[Piece] = []
    for piece in pieces:
        pool.append(piece)
        if sum(len(piece.samples) for piece in pool) >= _POOL_BATCHES * BATCH_SECONDS * SAMPLE_RATE:
            yield pool
            pool = []
    yield pool
