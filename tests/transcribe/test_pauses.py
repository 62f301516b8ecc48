import sys
import warnings
from itertools import islice, pairwise
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.commands.transcribe import app
from speechssl.data.manifest import read_manifest, read_utterance
from speechssl.data.recording import Recording
from speechssl.errors import ConfigError
from speechssl.transcribe.pauses import (
    MAX_PIECE_SECONDS,
    FindSpeech,
    _load_silero,
    cut_at_pauses,
    find_speech_by_energy,
    find_speech_by_silero,
    speech_finder,
)
from speechssl.transcribe.transcriber import Transcriber

RATE = 16_000
SENTENCES = Path(__file__).parents[2] / "recipes" / "prompts" / "corpus" / "test.tsv"


def sound(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def spans(
    samples: np.ndarray, block_seconds: float = 10.0, find_speech: FindSpeech = find_speech_by_energy
) -> list[tuple[float, float]]:
    step = round(block_seconds * RATE)
    blocks = [samples[first : first + step] for first in range(0, len(samples), step)]
    pieces = list(cut_at_pauses(blocks, find_speech))
    for piece in pieces:
        assert np.array_equal(piece.samples, samples[piece.start : piece.start + len(piece.samples)])
    return [(piece.start / RATE, (piece.start + len(piece.samples)) / RATE) for piece in pieces]


def test_pieces_lie_between_the_pauses() -> None:
    parts = [silence(2), sound(3), silence(0.3), sound(1), silence(0.8), sound(2), silence(3)]
    assert spans(np.concatenate(parts)) == [
        (pytest.approx(1.75, abs=0.03), pytest.approx(6.55, abs=0.03)),
        (pytest.approx(6.85, abs=0.03), pytest.approx(9.35, abs=0.03)),
    ]


def test_a_long_piece_is_cut_in_its_longest_pause_or_else_in_equal_parts() -> None:
    (a, b), (c, d) = spans(np.concatenate([sound(20), silence(0.1), sound(5), silence(0.3), sound(20)]))
    assert (a, d) == (0, pytest.approx(45.4))
    assert b == c == pytest.approx(25.25, abs=0.03)
    assert spans(sound(70))[-1][1] == 70
    assert all(stop - start <= MAX_PIECE_SECONDS for start, stop in spans(sound(70)))


@pytest.mark.parametrize("find_speech", [find_speech_by_energy, find_speech_by_silero])
def test_neither_level_nor_offset_matters(find_speech: FindSpeech) -> None:
    utterances = islice(read_manifest(SENTENCES), 0, 40, 8)
    speech = np.concatenate([part for utterance in utterances for part in (read_utterance(utterance), silence(1.5))])
    expected = spans(speech, find_speech=find_speech)
    assert len(expected) >= 5
    for gain, offset in ((0.01, 0.0), (0.001, 0.0), (1.0, 0.1), (0.01, -0.1), (1.4, 0.02)):
        # Silero's are not the same to the sample.
        assert spans(gain * speech + np.float32(offset), find_speech=find_speech) == [
            (pytest.approx(start, abs=0.1), pytest.approx(stop, abs=0.1)) for start, stop in expected
        ]
    assert spans(silence(90) + np.float32(0.1), find_speech=find_speech) == []


@given(st.integers(1, 40_000), st.integers(0, 99))
def test_speech_is_found_where_librosa_finds_it(num_samples: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    levels = np.repeat(10 ** generator.uniform(-4, -1, num_samples // 800 + 1), 800)[:num_samples]
    samples = (levels * generator.standard_normal(num_samples)).astype(np.float32)
    expected = librosa.effects.split(samples, top_db=35, frame_length=400, hop_length=160)
    assert find_speech_by_energy(samples) == [tuple(span) for span in expected.tolist()]


def test_silence_has_no_pieces() -> None:
    assert spans(silence(200)) == []
    assert spans(silence(0.001)) == []


@given(
    st.lists(st.tuples(st.floats(0.3, 40), st.floats(0.05, 80)), min_size=1, max_size=6), st.sampled_from([1.0, 10.0])
)
def test_no_sound_is_lost_and_no_word_is_cut_at_a_good_pause(
    parts: list[tuple[float, float]], block_seconds: float
) -> None:
    samples = np.concatenate([part for loud, quiet in parts for part in (sound(loud), silence(quiet))])
    found = spans(samples, block_seconds)
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    assert all(stop - start <= MAX_PIECE_SECONDS + 0.6 for start, stop in found)
    heard = np.zeros(len(samples), bool)
    for start, stop in found:
        heard[round(start * RATE) : round(stop * RATE)] = True
    assert not np.any(samples[~heard])
    position = 0.0
    for loud, quiet in parts:
        position += loud
        if quiet > 0.6 and loud < 29:  # a pause: nothing crosses it
            assert not any(start < position and stop > position + quiet for start, stop in found)
        position += quiet


def test_words_and_times_are_those_of_the_whole(checkpoint: CTCCheckpoint, planted_waveform, tmp_path: Path) -> None:
    texts = [text for text in ("hello abc", "где", "xyz qrs tu", "a b c") * 6 for _ in range(2)]
    # Each text once up and once down, so that there is no offset.
    parts = [
        part for number, text in enumerate(texts) for part in ((-1) ** number * planted_waveform(text), silence(2.0))
    ]
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate(parts), RATE, "FLOAT")
    transcriber = Transcriber(checkpoint)
    whole = transcriber.transcribe(path)
    (found,) = transcriber.transcribe_many([lambda: Recording(path)], split_at_pauses=True)
    for transcript in (found, transcriber.transcribe(path, split_at_pauses=True)):
        assert transcript.text == whole.text == " ".join(texts)
        assert transcript.seconds == whole.seconds
        for word, expected in zip(transcript.words, whole.words, strict=True):
            # A piece need not start on a frame of the whole.
            assert (word.start, word.end) == (
                pytest.approx(expected.start, abs=0.011),
                pytest.approx(expected.end, abs=0.011),
            )
    part = transcriber.transcribe(path, start=5.0, split_at_pauses=True)
    assert part.words[0].start > 5.0


@pytest.mark.parametrize(
    ("options", "expected"), [([], find_speech_by_energy), (["--vad", "silero"], find_speech_by_silero)]
)
def test_the_command_splits_too(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: object
) -> None:
    seen = []
    monkeypatch.setattr(
        "speechssl.transcribe.transcriber.cut_at_pauses", lambda blocks, find_speech: seen.append(find_speech) or 1 / 0
    )
    soundfile.write(tmp_path / "a.wav", sound(1), RATE)
    arguments = [str(tmp_path / "a.wav"), "--model", str(model_folder), "--device", "cpu", *options]
    result = CliRunner().invoke(app, [*arguments, "--split-at-pauses"])
    assert isinstance(result.exception, ZeroDivisionError)
    assert seen == [expected]
    if options:
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--split-at-pauses" in result.stderr


def test_voices_are_found_in_noise() -> None:
    """Where no pause is quiet, Silero VAD still finds the sentences, and the sound level nothing."""
    num_threads = torch.get_num_threads()
    utterances = [u for u in read_manifest(SENTENCES) if 1.5 <= u.seconds <= 4][:8]
    parts, expected, position = [], [], 0.0
    for utterance in utterances:
        parts += [silence(1.5), read_utterance(utterance)]
        position += 1.5
        expected.append((position, position + utterance.seconds))
        position += utterance.seconds
    speech = np.concatenate(parts)
    level = float(np.sqrt((speech**2).mean())) * 10 ** (-10 / 20)  # 10 dB below the speech
    noisy = (speech + np.random.default_rng(0).normal(0, level, len(speech))).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = spans(noisy, find_speech=speech_finder("silero"))
    assert len(found) == len(expected)
    for (start, stop), (true_start, true_stop) in zip(found, expected, strict=True):
        assert (start, stop) == (pytest.approx(true_start, abs=0.6), pytest.approx(true_stop, abs=0.6))
    assert len(spans(noisy)) < len(expected)
    assert spans(silence(90), find_speech=find_speech_by_silero) == []
    assert torch.get_num_threads() == num_threads


def test_what_is_missing_is_said(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    monkeypatch.setattr("speechssl.transcribe.pauses._load_silero", _load_silero.__wrapped__)
    with pytest.raises(ConfigError, match=r"pip install 'speechssl\[vad\]'"):
        Transcriber(checkpoint).transcribe(sound(1), RATE, split_at_pauses=True, vad="silero")
    with pytest.raises(ConfigError, match="expected energy or silero, found 'loud'"):
        Transcriber(checkpoint).transcribe(sound(1), RATE, split_at_pauses=True, vad="loud")
