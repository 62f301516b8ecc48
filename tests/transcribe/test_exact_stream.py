"""Streams of causal models: the numbers and the text of the whole recording, however it is divided."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription
from speechssl.data.audio import Waveform
from speechssl.data.units import Letters, Units
from speechssl.decode.words import Word, join_words
from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry
from speechssl.model.attention import SelfAttention
from speechssl.model.causal import CausalConfig, CausalLayer
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.past import Past
from speechssl.model.position import PositionalConvolution
from speechssl.model.transformer import TransformerConfig
from speechssl.transcribe import running_norm
from speechssl.transcribe.listener import Listener, make_listener
from speechssl.transcribe.running_norm import RunningNorm
from speechssl.transcribe.stream import _Stream, stream_transcripts
from speechssl.transcribe.transcriber import Transcriber

FEATURES = FeatureEncoderConfig(dims=(12, 16, 16), kernels=(16, 4, 3), strides=(10, 4, 2), norm="layer")  # 80, 126
SIZES: dict[str, Any] = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "ffn_dim": 24, "position_groups": 2}
CONTEXTS = {
    "transformer": CausalTransformerConfig(**SIZES, position_kernel=6),
    "norm first": CausalTransformerConfig(**SIZES, position_kernel=1, norm_first=True),
    "with a span": CausalTransformerConfig(**SIZES, position_kernel=6, attention_frames=7),
    "with itself": CausalTransformerConfig(**SIZES, position_kernel=6, attention_frames=1),
    "wav2vec": CausalConfig(model_dim=16, kernels=(2, 3, 1, 4), norm="frame"),
}
VOCABULARY = Letters.from_texts(["abcdefg"])
CHUNKS = {"samples": (1,), "less than a frame": (37,), "primes": (601, 7, 1999, 83), "seconds": (40_001,)}


def make_transcriber(context: Any, normalize: bool | float = False) -> Transcriber:
    torch.manual_seed(0)
    config = EncoderConfig(feature_encoder=FEATURES, context=context, normalize_waveforms=normalize)
    model = CTCModel(config, len(VOCABULARY)).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    return Transcriber(CTCCheckpoint(model, VOCABULARY, ModelDescription(kind="ctc", step=1, encoder=config)))


def babble(num_samples: int) -> Waveform:
    """Sounds of several levels, with pauses that are all but silent."""
    generator = np.random.default_rng(0)
    levels = generator.uniform(0.01, 0.3, num_samples // 1500 + 1)
    levels[2::5] = 2e-5
    levels = np.repeat(levels, 1500)[:num_samples]
    return (levels * generator.standard_normal(num_samples)).astype(np.float32)


def divided(wave: Waveform, sizes: Sequence[int]) -> list[Waveform]:
    chunks: list[Waveform] = []
    first = 0
    while first < len(wave):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(wave[first : first + size])
        first += size
    return chunks


def log_probs(transcriber: Transcriber, chunks: Sequence[Waveform]) -> Tensor:
    """What the model says of the frames of a stream."""
    listener = make_listener(transcriber.checkpoint.model, transcriber.inference)
    parts: list[Tensor] = []

    def score(window: Waveform) -> Tensor:
        parts.append(listener.score(window))
        return parts[-1]

    recorded = Listener(score, listener.past, listener.normalize)
    list(stream_transcripts(chunks, 16_000, None, recorded, VOCABULARY, transcriber.geometry))
    return torch.cat(parts)


@torch.inference_mode()
def whole_log_probs(transcriber: Transcriber, wave: Waveform, is_normalized: bool = False) -> Tensor:
    model = transcriber.checkpoint.model
    frames = model.encoder.extract_frames(torch.from_numpy(wave)[None], is_normalized=is_normalized)
    scores: Tensor = model.head(model.encoder.contextualize(frames))
    return scores.log_softmax(dim=2)[0]


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_log_probs_are_those_of_the_whole(context: Any, sizes: Sequence[int]) -> None:
    transcriber, wave = make_transcriber(context), babble(4_321 if max(sizes) < 100 else 50_000)
    expected = whole_log_probs(transcriber, wave)
    torch.testing.assert_close(log_probs(transcriber, divided(wave, sizes)), expected, rtol=1e-4, atol=1e-4)


def drop(past: Past, owner: Any, new: Tensor, num_kept: int | None, start: Tensor | None = None) -> Tensor:
    return new if start is None else torch.cat((start, new), dim=2)


def shift(past: Past, owner: Any, new: Tensor, num_kept: int | None, start: Tensor | None = None) -> Tensor:
    seen = KEEP(past, owner, new, num_kept, start)
    past._kept[owner] = past._kept[owner].roll(1, dims=2)
    return seen


KEEP = Past.extend


@pytest.mark.parametrize("wrong", [drop, shift])
@pytest.mark.parametrize(
    ("context", "kind"),
    [
        ("transformer", PositionalConvolution),
        ("with a span", torch.nn.Linear),  # keys and values, whose order matters to a span alone
        ("wav2vec", CausalLayer),
    ],
)
def test_every_kind_of_state_matters(
    context: str, kind: type, wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail."""
    transcriber, wave = make_transcriber(CONTEXTS[context]), babble(20_000)

    def extend(past: Past, owner: Any, *others: Any, **named: Any) -> Tensor:
        return (wrong if isinstance(owner, kind) else KEEP)(past, owner, *others, **named)

    monkeypatch.setattr(Past, "extend", extend)
    difference = log_probs(transcriber, divided(wave, (601,))) - whole_log_probs(transcriber, wave)
    assert difference.abs().max() > 0.05


def test_a_span_is_that_many_frames() -> None:
    attention = SelfAttention(8, 2, 0.0, is_causal=True, span_frames=3)
    x = torch.randn(1, 10, 8, requires_grad=True)
    attention(x, None)[0, 6].square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == [4, 5, 6]


@pytest.mark.parametrize("normalize", [True, 1e-8])
def test_a_model_that_normalizes_hears_the_running_norm(normalize: bool | float) -> None:
    transcriber, wave = make_transcriber(CONTEXTS["with a span"], normalize), babble(50_000) + np.float32(0.05)
    normalized = RunningNorm(1e-5 if normalize is True else normalize)(wave)
    expected = whole_log_probs(transcriber, normalized, is_normalized=True)
    for sizes in CHUNKS["primes"], CHUNKS["seconds"]:
        torch.testing.assert_close(log_probs(transcriber, divided(wave, sizes)), expected, rtol=1e-4, atol=1e-3)
    assert (whole_log_probs(transcriber, wave) - expected).abs().max() > 0.1  # another normalization, other numbers


@pytest.mark.parametrize("sizes", [(1,), (601, 7, 1999), (100_000,)])
def test_a_running_norm_knows_the_last_minute(sizes: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_norm, "WINDOW_SECONDS", 0.05)  # 800 samples
    wave = 10 * babble(5_000) + np.linspace(0, 1, 5_000, dtype=np.float32)
    norm = RunningNorm(0.01)
    found = np.concatenate([norm(chunk) for chunk in divided(wave, sizes)])
    assert norm(np.empty(0, np.float32)).size == 0
    for last in (0, 1, 500, 799, 800, 4_000, 4_999):
        heard = wave[max(last - 799, 0) : last + 1].astype(np.float64)
        count = len(heard) + 4_800  # of -30 dB at first
        mean = heard.sum() / count
        variance = ((heard**2).sum() + 4.8) / count - mean**2
        assert found[last] == pytest.approx((wave[last] - mean) / (variance + 0.01) ** 0.5, rel=1e-5)


def test_faint_noise_at_the_start_stays_faint() -> None:
    noise = 1e-3 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    speech = babble(32_000)
    normalized = RunningNorm(1e-8)(np.concatenate((noise, speech)))
    assert normalized[:16_000].std() < 0.2 * normalized[-16_000:].std()


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_words_and_times_are_those_of_the_whole(context: Any) -> None:
    transcriber, wave = make_transcriber(context), babble(60_000)
    whole = transcriber.transcribe(wave, 16_000)
    assert len(whole.words) > 5
    for sizes in CHUNKS["primes"], CHUNKS["seconds"]:
        results = list(transcriber.stream(divided(wave, sizes), 16_000))
        found = [word for result in results for word in result.words]
        assert join_words(found) == whole.text
        assert [(word.text, word.start, word.end) for word in found] == [
            (word.text, word.start, word.end) for word in whole.words
        ]
        assert [word.confidence for word in found] == pytest.approx([word.confidence for word in whole.words], abs=1e-3)
        text = ""
        for result in results:  # what is final stays, and what is said already is shown at once
            text = join_words([Word(text, 0, 0, 1), *result.words]) if text else join_words(result.words)
            assert whole.text.startswith(text)


class Spelling:
    """Says a text, a symbol a frame of 320 samples."""

    def __init__(self, symbols: Sequence[int], num_symbols: int) -> None:
        self.rows = torch.nn.functional.one_hot(torch.tensor(symbols), num_symbols).float().mul(20).log_softmax(dim=1)

    def __call__(self, window: Waveform) -> Tensor:
        num_frames = len(window) // 320
        said, self.rows = self.rows[:num_frames], self.rows[num_frames:]
        return said


def streamed(symbols: Sequence[int], units: Units, num_frames: int) -> list[Word]:
    """The words of a stream that says so, in chunks of so many frames."""
    listener = Listener(Spelling(symbols, len(units)), Past())
    chunks = divided(np.zeros(320 * len(symbols), np.float32), (320 * num_frames,))
    results = stream_transcripts(chunks, 16_000, None, listener, units, FrameGeometry((320,), (320,)))
    return [word for result in results for word in result.words]


@pytest.mark.parametrize("num_frames", [1, 7, 1_000])
def test_a_pause_adds_no_space_that_the_whole_lacks(num_frames: int) -> None:
    pause = [VOCABULARY.blank_id] * 60
    a, b, delimiter = (*VOCABULARY.encode("ab")[:2], VOCABULARY.delimiter_id)
    said = [a, b, *pause, b, a, a, delimiter, *pause, a, *pause, delimiter, b, *pause, delimiter, *pause, a]
    words = streamed(said, VOCABULARY, num_frames)
    assert join_words(words) == "abba a b a"
    if num_frames < 1_000:
        assert [word.text for word in words] == ["ab", "ba", "a", "b", "a"]
        assert [word.is_joined for word in words] == [False, True, False, False, False]


def test_a_word_without_an_end_is_final_part_by_part() -> None:
    """As what a script without spaces says; and what waits does not grow."""
    said = [symbol for _ in range(300) for symbol in (*VOCABULARY.encode("abc")[:3], VOCABULARY.blank_id)]
    words = streamed(said, VOCABULARY, 3)
    assert join_words(words) == "abc" * 300
    assert max(len(word.text) for word in words) <= 0.75 * 250 + 4  # 5 s and a chunk
    assert [word.is_joined for word in words] == [False] + [True] * (len(words) - 1)


@pytest.mark.filterwarnings("ignore:array. offset")
def test_a_result_comes_with_each_chunk_that_completes_a_frame() -> None:
    transcriber, wave = make_transcriber(CONTEXTS["transformer"]), babble(4_000)
    ends = [min(first + 37, 4_000) for first in range(0, 4_000, 37)]
    num_frames = [0, *map(transcriber.geometry.num_frames, ends)]
    expected = [end for end, before, now in zip(ends, num_frames, num_frames[1:], strict=False) if now > before]
    results = list(transcriber.stream(divided(wave, (37,)), 16_000))
    assert [round(result.seconds * 16_000) for result in results] == [*expected, 4_000]
    text = ""
    for result in results:  # nothing that the model has said is held back
        text = join_words([Word(text, 0, 0, 1), *result.words]) if text else join_words(result.words)
        whole = transcriber.transcribe(wave[: round(result.seconds * 16_000)], 16_000).text
        assert f"{text} {result.partial}".split() == whole.split() or text + result.partial == whole


@pytest.mark.parametrize("context", ["with a span", "wav2vec"])
def test_memory_does_not_grow(context: str) -> None:
    transcriber = make_transcriber(CONTEXTS[context], 1e-8)
    listener = make_listener(transcriber.checkpoint.model, transcriber.inference)
    stream, sizes = _Stream(listener, VOCABULARY, transcriber.geometry), set()
    for chunk in divided(babble(40_000), (800,)):
        stream.add(chunk)
        assert len(stream.window) < 800 + transcriber.geometry.receptive_field_samples
        stream.decide(is_over=False)
        assert listener.past
        sizes.add(listener.past.num_bytes)
    assert len(sizes) == 1


def test_without_a_span_the_past_grows() -> None:
    transcriber = make_transcriber(CONTEXTS["transformer"])
    model, past = transcriber.checkpoint.model, Past()
    for num_frames in (10, 20):
        model(torch.randn(1, transcriber.geometry.num_samples(10)), past=past)
        kept = past.num_bytes
        assert kept == 4 * 16 * (5 + 2 * 2 * num_frames)  # the convolution's, then each layer's keys and values


@pytest.mark.parametrize(
    ("context", "norm", "found"),
    [
        (TransformerConfig(**SIZES), "group", 'context.kind "transformer", and "group"'),
        (CausalConfig(model_dim=16), "utterance", 'context.kind "causal", its norm "utterance", and "utterance"'),
        (CausalConfig(model_dim=16), "layer", 'context.kind "causal", its norm "utterance", and "layer"'),
    ],
)
def test_a_model_that_knows_the_future_is_refused_here_and_streams_by_windows(
    context: Any, norm: Any, found: str
) -> None:
    features = FEATURES.model_copy(update={"norm": norm})
    config = EncoderConfig(feature_encoder=features, context=context)
    model = CTCModel(config, len(VOCABULARY)).eval()
    with pytest.raises(ConfigError, match=f"^stream: expected .*causal_transformer.*, found {found}$"):
        model.encoder.begin_stream()
    transcriber = Transcriber(CTCCheckpoint(model, VOCABULARY, ModelDescription(kind="ctc", step=1, encoder=config)))
    assert not make_listener(model, transcriber.inference).is_exact
    results = list(transcriber.stream(divided(babble(32_000), (1600,)), 16_000))
    assert [round(result.seconds, 1) for result in results] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_streams_do_not_share_their_past() -> None:
    transcriber, wave = make_transcriber(CONTEXTS["transformer"]), babble(20_000)
    expected = list(transcriber.stream(divided(wave, (601,)), 16_000))
    first, second = (transcriber.stream(divided(wave, (601,)), 16_000) for _ in range(2))
    assert list(zip(first, second, strict=True)) == list(zip(expected, expected, strict=True))  # in turns
