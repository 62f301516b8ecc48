"""Times and confidences of words: planted paths, and a model that knows its tones."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription
from speechssl.data.units import Letters
from speechssl.decode.greedy import PathToken, join_repeats
from speechssl.decode.words import Word, join_words, words_of_path
from speechssl.frames import FrameGeometry
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.transcribe.transcriber import Transcriber

VOCABULARY = Letters.from_texts(["abc"])
DELIMITER, A, B, C = 1, 2, 3, 4
GEOMETRY = FrameGeometry((4, 2), (2, 2))  # frame f sees the samples [4 f, 4 f + 6) and stands for [4 f + 1, 4 f + 5)


def test_a_word_lasts_from_its_first_frame_to_its_last() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    tokens = [
        PathToken(DELIMITER, 0, 0, -3.0),
        PathToken(A, 2, 3, half),
        PathToken(B, 7, 7, quarter),
        PathToken(DELIMITER, 8, 8, -3.0),
        PathToken(DELIMITER, 10, 10, -3.0),
        PathToken(C, 12, 13, 0.0),
    ]
    first, second = words_of_path(tokens, VOCABULARY, GEOMETRY, 1000)
    assert (first.text, first.start, first.end) == ("ab", 9 / 16_000, 33 / 16_000)
    assert first.confidence == pytest.approx(0.125**0.5)
    assert second == Word("c", 49 / 16_000, 57 / 16_000, 1.0)
    assert words_of_path(tokens, VOCABULARY, GEOMETRY, 55)[1].end == 55 / 16_000
    assert words_of_path([], VOCABULARY, GEOMETRY, 55) == ()


@given(st.lists(st.sampled_from([0, 0, DELIMITER, A, B, C]), max_size=40), st.integers(0, 6))
def test_times_rise_inside_the_recording_and_nothing_is_lost(symbols: list[int], extra: int) -> None:
    tokens = join_repeats([-0.5] * len(symbols), symbols, VOCABULARY.blank_id)
    num_samples = GEOMETRY.num_samples(len(symbols)) + extra if symbols else extra
    words = words_of_path(tokens, VOCABULARY, GEOMETRY, num_samples)
    assert " ".join(word.text for word in words) == VOCABULARY.decode(token.symbol_id for token in tokens)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0 <= word.start < word.end <= num_samples / 16_000 for word in words)
    assert all(word.confidence == pytest.approx(math.exp(-0.5)) for word in words)


def path_of(text: str, frames: list[int], letters: str = "") -> tuple[list[PathToken], Letters]:
    units = Letters.from_texts([letters or text])
    ids = [units.delimiter_id if letter == " " else units.symbols.index(letter) for letter in text]
    return [PathToken(i, frame, frame, -0.5) for i, frame in zip(ids, frames, strict=True)], units


def test_letters_of_a_script_without_spaces_have_their_own_times() -> None:
    text = "你好 世界ab漢 cd"
    frames = [3, 9, 10, 20, 30, 31, 32, 40, 41, 50, 51]
    tokens, units = path_of(text, frames)
    words = words_of_path(tokens, units, GEOMETRY, 10_000)
    assert [(word.text, word.is_joined) for word in words] == [
        ("你", False),
        ("好", True),
        ("世", False),
        ("界", True),
        ("ab", True),
        ("漢", True),
        ("cd", False),
    ]
    starts = [(4 * frame + 1) / 16_000 for frame in (3, 9, 20, 30, 31, 40, 50)]
    assert [word.start for word in words] == starts
    assert join_words(words) == text == units.decode(token.symbol_id for token in tokens)


def test_marks_stay_with_their_letters() -> None:
    tokens, units = path_of("กำที่", [1, 2, 3, 4, 5])
    words = words_of_path(tokens, units, GEOMETRY, 10_000)
    assert [word.text for word in words] == ["กำ", "ที่"]
    assert words[1].end == (4 * 6 + 1) / 16_000
    tokens, units = path_of("क्षि te", [1, 2, 3, 4, 5, 6, 7])  # written with spaces
    assert [word.text for word in words_of_path(tokens, units, GEOMETRY, 10_000)] == ["क्षि", "te"]


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_model_that_knows_tones_times_them_to_two_frames(norm: str) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        feature_encoder=FeatureEncoderConfig(dims=(24, 24, 24), kernels=(40, 6, 4), strides=(20, 4, 2), norm=norm),
        context=TransformerConfig(
            num_layers=1, model_dim=24, num_heads=2, ffn_dim=24, position_kernel=2, position_groups=1
        ),
    )
    model = CTCModel(config, len(VOCABULARY)).eval()
    hop = model.encoder.geometry.hop_samples
    assert hop == 160

    def sound(said: list[tuple[int, int]]) -> np.ndarray:
        noise = np.random.default_rng(sum(n for _, n in said)).standard_normal
        pitches = {0: 0, DELIMITER: 300, A: 900, B: 1700, C: 3100}
        parts = [0.1 * np.sin(2 * np.pi * pitches[symbol] * np.arange(n * hop) / 16_000) for symbol, n in said]
        wave = np.concatenate(parts)
        return (wave + 0.002 * noise(len(wave))).astype(np.float32)

    generator = np.random.default_rng(0)
    lesson = [(symbol, int(generator.integers(6, 30))) for _ in range(8) for symbol in generator.permutation(5)]
    wave = torch.from_numpy(sound(lesson))[None]
    labels = torch.tensor([symbol for symbol, n in lesson for _ in range(n)])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        log_probs = model(wave).log_probs[0]
        nn.functional.nll_loss(log_probs, labels[: len(log_probs)]).backward()
        optimizer.step()
    said = [(0, 40), (A, 30), (B, 20), (DELIMITER, 10), (0, 50), (C, 35), (DELIMITER, 10), (B, 25), (0, 30)]
    checkpoint = CTCCheckpoint(model, VOCABULARY, ModelDescription(kind="ctc", step=1, encoder=config))
    transcript = Transcriber(checkpoint).transcribe(sound(said), 16_000)
    assert transcript.text == "ab c b"
    for word, (first, stop) in zip(transcript.words, [(40, 90), (150, 185), (195, 220)], strict=True):
        assert word.start * 16_000 / hop == pytest.approx(first, abs=2)
        assert word.end * 16_000 / hop == pytest.approx(stop, abs=2)
        assert word.confidence > 0.5


def test_units_that_are_no_text_are_no_part_of_a_word() -> None:
    units = Letters((*VOCABULARY.symbols, "<unk>"))
    symbols = [2, 5, 3, 1, 5, 1, 4]
    tokens = [PathToken(symbol, frame, frame, -9.0 if symbol == 5 else -0.5) for frame, symbol in enumerate(symbols)]
    words = words_of_path(tokens, units, GEOMETRY, 10**6)
    assert [(word.text, word.confidence) for word in words] == [
        ("ab", pytest.approx(math.exp(-0.5))),
        ("c", pytest.approx(math.exp(-0.5))),
    ]
