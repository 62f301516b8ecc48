"""Streams: final words never change, come in time and are nearly those of the whole recording."""

import difflib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.audio import Waveform
from speechssl.errors import AudioError
from speechssl.transcribe import stream
from speechssl.transcribe.listener import LEFT_SECONDS, RIGHT_SECONDS, Listener
from speechssl.transcribe.stream import PartialTranscript
from speechssl.transcribe.transcriber import Transcriber

CHUNK = 1600
STEP_SECONDS = 0.2


def chunks_of(wave: Waveform) -> list[Waveform]:
    return [wave[first : first + CHUNK] for first in range(0, len(wave), CHUNK)]


def speech(planted_waveform, num_words: int, pause_samples: int) -> Waveform:
    words = [planted_waveform("".join(chr(97 + (n * k) % 26) for k in range(1, 8))) for n in range(1, num_words + 1)]
    return np.concatenate([part for word in words for part in (word, np.zeros(pause_samples, np.float32))])


def test_the_words_of_a_stream_are_those_of_the_recording(checkpoint: CTCCheckpoint, planted_waveform) -> None:
    wave, transcriber = speech(planted_waveform, 40, 3200), Transcriber(checkpoint)
    whole = transcriber.transcribe(wave, 16_000)
    checkpoint.model.batch_shapes.clear()
    results = list(transcriber.stream(chunks_of(wave), 16_000, STEP_SECONDS))
    assert tuple(word for result in results for word in result.words) == whole.words
    assert results[-1].partial == ""
    assert results[-1].seconds == whole.seconds
    assert len(results) >= len(wave) / 16_000 / (STEP_SECONDS + 0.1)
    longest = LEFT_SECONDS + RIGHT_SECONDS + STEP_SECONDS + 0.1
    lengths = [length for _, length in checkpoint.model.batch_shapes]
    assert max(lengths) <= longest * 16_000
    shortest = (LEFT_SECONDS + RIGHT_SECONDS) * 16_000  # what a decision has around it, once so much has come
    assert min(lengths[next(n for n, length in enumerate(lengths) if length >= shortest) :]) >= shortest


def test_every_word_is_final_in_time_and_partial_before(checkpoint: CTCCheckpoint, planted_waveform) -> None:
    wave, transcriber = speech(planted_waveform, 25, 3200), Transcriber(checkpoint)
    whole = transcriber.transcribe(wave, 16_000)
    bound = stream.PAUSE_SECONDS + RIGHT_SECONDS + STEP_SECONDS + CHUNK / 16_000
    said = ""
    for result in transcriber.stream(chunks_of(wave), 16_000, STEP_SECONDS):
        said = " ".join([said, *(word.text for word in result.words)]).strip()
        ended = [word.text for word in whole.words if word.end < result.seconds - bound]
        heard = [word.text for word in whole.words if word.end < result.seconds - 0.01]
        assert said.startswith(" ".join(ended))
        assert f"{said} {result.partial}".strip().startswith(" ".join(heard))
        assert whole.text.startswith(said)
        if result.seconds < whole.seconds:  # what follows was heard first
            assert all(word.end <= result.seconds - RIGHT_SECONDS + 0.01 for word in result.words)


def test_a_pause_ends_a_word_without_a_delimiter(checkpoint: CTCCheckpoint, planted_waveform) -> None:
    word = planted_waveform("hello")[: -160 * 4]  # no delimiter
    silence = np.zeros(16_000 * 2, np.float32)
    results = list(Transcriber(checkpoint).stream(chunks_of(np.concatenate((word, silence))), 16_000, STEP_SECONDS))
    final = next(result for result in results if result.words)
    assert final.words[0].text == "hello"
    bound = stream.PAUSE_SECONDS + RIGHT_SECONDS + STEP_SECONDS + CHUNK / 16_000
    assert final.seconds <= final.words[0].end + bound + 1e-6
    assert {result.partial for result in results} == {"hello", ""}


def test_silence_takes_no_memory(checkpoint: CTCCheckpoint) -> None:
    transcriber = Transcriber(checkpoint)
    listener = stream._Stream(
        Listener(lambda samples: transcriber.inference.run_alone("stream", samples)[0]),
        checkpoint.vocabulary,
        transcriber.geometry,
    )
    for _ in range(30):
        listener.add(np.zeros(16_000, np.float32))
        assert listener.decide(is_over=False).words == ()
    assert len(listener.symbols) == len(listener.log_probs) == 0
    assert len(listener.window) <= (LEFT_SECONDS + RIGHT_SECONDS + 1) * 16_000


def test_a_model_says_nearly_what_it_says_of_the_whole(model_folder: Path) -> None:
    transcriber = Transcriber.load(model_folder, "cpu")
    generator = np.random.default_rng(0)
    levels = np.repeat(generator.uniform(0.02, 0.3, 80), 4000)
    wave = (levels * generator.standard_normal(len(levels))).astype(np.float32)
    whole = transcriber.transcribe(wave, 16_000)
    results = list(transcriber.stream(chunks_of(wave), 16_000))
    text = " ".join(word.text for result in results for word in result.words)
    assert difflib.SequenceMatcher(None, text, whole.text, autojunk=False).ratio() > 0.8
    times = [time for result in results for word in result.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= whole.seconds


def test_any_rate_type_and_size_of_chunks(checkpoint: CTCCheckpoint) -> None:
    transcriber = Transcriber(checkpoint)
    chunks = [np.full((441, 2), 300, np.int16)] * 150
    assert list(transcriber.stream(chunks, 44_100))[-1].seconds == pytest.approx(1.5, abs=1e-4)
    assert list(transcriber.stream([], 16_000)) == [PartialTranscript((), "", 0.0)]
    assert list(transcriber.stream([np.zeros(10, np.float32)], 16_000))[-1].words == ()
    with pytest.raises(AudioError, match="expected floats"):
        list(transcriber.stream([np.zeros(10, bool)], 16_000))


def test_empty_chunks_tensors_and_single_frames(checkpoint: CTCCheckpoint, planted_waveform) -> None:
    wave, transcriber = speech(planted_waveform, 5, 3200), Transcriber(checkpoint)
    expected = list(transcriber.stream(chunks_of(wave), 16_000, STEP_SECONDS))
    empty: list[Any] = [np.zeros(0, np.float32), [], np.zeros((0, 2)), torch.zeros(0)]
    with_gaps = [part for number, chunk in enumerate(chunks_of(wave)) for part in (empty[number % 4], chunk)]
    assert list(transcriber.stream([*with_gaps, empty[0]], 16_000, STEP_SECONDS)) == expected
    tensors = [torch.from_numpy(chunk).requires_grad_() for chunk in chunks_of(wave)]
    assert list(transcriber.stream(tensors, 16_000, STEP_SECONDS)) == expected  # type: ignore[arg-type]
    assert list(transcriber.stream(empty, 16_000)) == [PartialTranscript((), "", 0.0)]
    frames = [np.zeros((1, 2), np.float32)] * 100
    assert list(transcriber.stream(frames, 16_000))[-1].seconds == 100 / 16_000


def test_the_rate_is_a_whole_number_of_any_type(checkpoint: CTCCheckpoint, planted_waveform) -> None:
    wave, transcriber = speech(planted_waveform, 5, 3200), Transcriber(checkpoint)
    slow = np.repeat(np.abs(wave), 3)  # what changes its sign with each sample is beyond 16 kHz
    for chunks, rate in ((chunks_of(wave), 16_000.0), (chunks_of(slow), 48_000.0)):
        results = list(transcriber.stream(chunks, rate, STEP_SECONDS))  # type: ignore[arg-type]
        assert results == list(transcriber.stream(chunks, int(rate), STEP_SECONDS))
        assert sum(len(result.words) for result in results) == 5
    bad: list[Any] = [0, -1, None, math.nan, math.inf, 44_100.5]
    for rate in bad:
        with pytest.raises(AudioError, match=f"^array: expected its sample rate .*, found {rate}$"):
            next(transcriber.stream(chunks_of(wave), rate))
    for step_seconds in 0, -1.0, math.nan:
        with pytest.raises(AudioError, match=f"^stream: expected step_seconds above 0, found {step_seconds}$"):
            next(transcriber.stream(chunks_of(wave), 16_000, step_seconds))
