"""What the recipes' batches hold on utterances as long as LibriSpeech's, beside what fairseq's would.

The corpus is not here. Its lengths are approximated by what is known of it: 281,241 utterances of 960.9 hours, 1.5 to
25 seconds long, most of 13 to 16.5; a tenth of it is drawn. The figures in recipes/models and recipes/librispeech are
those that this prints under `pytest -s`.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from speechssl.data.sampler import BatchSampler
from speechssl.frames import FrameGeometry, MaskConfig, draw_masks
from speechssl.rng import keyed_generator
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.pretrain import PretrainConfig
from speechssl.train.record import RunConfig

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = ["data.train=none", "data.dev=none", "data.license=none"]
RATE = 16_000
Lengths = npt.NDArray[np.int64]


def librispeech_lengths(number: int, hours: float) -> Lengths:
    """Draw lengths in samples: 71 % near 15 seconds, where the corpus was cut, and 29 % of any shorter length."""
    generator = np.random.default_rng(0)
    long = np.clip(generator.normal(14.7, 1.1, number), 9, 17)
    kind = generator.random(number)
    seconds = np.where(kind < 0.29, generator.uniform(1.5, 12, number), long)
    seconds = np.where(kind < 0.995, seconds, generator.uniform(17, 25, number))
    return (seconds * hours * 3600 / seconds.sum() * RATE).astype(np.int64)


ALL = librispeech_lengths(28_124, 96.09)
CLEAN_100 = librispeech_lengths(28_539, 100.6)


def fairseq_batches(
    lengths: Lengths, max_tokens: int, *, shortest: int = 0, longest: int | None = None, most: int | None = None
) -> list[Lengths]:
    """Batches of lengths by fairseq's rules: in order of length, as many as fit, cut to multiples of 8 from 8 on.

    With ``longest`` utterances are cropped, so that they count and are as long as the shortest of their batch.
    """
    lengths = lengths[lengths >= shortest]
    cropped = lengths if longest is None else np.minimum(lengths, longest)
    batches: list[Lengths] = []
    waiting: list[int] = []
    for length in np.sort(cropped)[::-1].tolist():
        if waiting and (len(waiting) == most or (len(waiting) + 1) * waiting[0] > max_tokens):
            size = max(len(waiting) // 8 * 8, len(waiting) % 8)
            batches.append(np.array(waiting[:size]))
            del waiting[:size]
        waiting.append(length)
    batches.append(np.array(waiting))
    return batches if longest is None else [np.full(len(batch), batch.min()) for batch in batches]


def sampler_of(config: RunConfig, lengths: Lengths) -> BatchSampler:
    return BatchSampler(lengths.tolist(), config.batches, 0, crop=isinstance(config, PretrainConfig))


def pretraining(model: str) -> PretrainConfig:
    return PretrainConfig.load([RECIPES / "models" / f"{model}.toml"], DATA)


def finetuning(model: str, labels: str) -> FinetuneConfig:
    folder = RECIPES / "librispeech" / "finetune"
    return FinetuneConfig.load([folder / f"{model}.toml", folder / f"{model}_{labels}.toml"], [*DATA, "init=none"])


@pytest.mark.parametrize(
    ("config", "lengths", "num_batches", "max_tokens", "bounds"),
    [
        (pretraining("wav2vec2_base"), ALL, 64, 1_400_000, {"shortest": 32_000, "longest": 250_000}),
        (pretraining("wav2vec2_large"), ALL, 128, 1_200_000, {"shortest": 32_000, "longest": 320_000, "most": 4}),
        (pretraining("wav2vec_base"), ALL, 8, 1_500_000, {"longest": 150_000}),
        (pretraining("wav2vec_large"), ALL, 16, 1_500_000, {"longest": 150_000}),
        (finetuning("base", "100h"), CLEAN_100, 2 * 4, 3_200_000, {}),
        (finetuning("base", "960h"), ALL, 8, 3_200_000, {}),
        (finetuning("large", "100h"), CLEAN_100, 4 * 5, 1_280_000, {}),
        (finetuning("large", "960h"), ALL, 24, 1_280_000, {}),
    ],
    ids=["base", "large", "wav2vec base", "wav2vec large", "base 100h", "base 960h", "large 100h", "large 960h"],
)
def test_an_update_has_as_much_audio_as_fairseqs(
    config: RunConfig, lengths: Lengths, num_batches: int, max_tokens: int, bounds: dict[str, int]
) -> None:
    sampler = sampler_of(config, lengths)
    minutes = sampler.seconds_per_epoch / sampler.num_batches * config.trainer.microbatches / 60
    batches = fairseq_batches(lengths, max_tokens, **bounds)
    reference = num_batches * np.mean([batch.sum() for batch in batches]) / RATE / 60
    print(f"{minutes:.1f} minutes an update, fairseq {reference:.1f}; cropped {sampler.cropped_share:.1%}")  # noqa: T201
    assert minutes == pytest.approx(reference, rel=0.07)
    if isinstance(config, PretrainConfig):
        usable = np.minimum(lengths, config.batches.max_seconds * RATE)[lengths >= config.batches.min_seconds * RATE]
        assert sampler.seconds_per_epoch > 0.985 * usable.sum() / RATE


def hidden_share(mask: MaskConfig, batches: list[list[int]]) -> float:
    """The share of frames, or channels, that are hidden in batches of these lengths."""
    masks = [
        drawn
        for number, batch in enumerate(batches)
        for drawn in draw_masks(batch, mask, [keyed_generator(number, row) for row in range(len(batch))])
    ]
    return float(np.concatenate(masks).mean())


@pytest.mark.parametrize(
    ("config", "lengths", "frames", "channels"),
    [(pretraining("wav2vec2_base"), ALL, 0.456, None), (finetuning("base", "100h"), CLEAN_100, 0.450, 0.314)],
    ids=["base", "base 100h"],
)
def test_as_much_is_hidden_as_by_fairseq(
    config: PretrainConfig | FinetuneConfig, lengths: Lengths, frames: float, channels: float | None
) -> None:
    """The shares are those measured with fairseq's ``compute_mask_indices`` in its own batches."""
    plans = sampler_of(config, lengths).epoch(0)[:300]
    if isinstance(config, PretrainConfig):
        geometry, mask = config.encoder.feature_encoder.geometry, config.objective.mask
    else:
        geometry, mask = FrameGeometry(kernels=(400,), strides=(320,)), config.regularization.time_mask
    batches = [[geometry.num_frames(plan.crop_samples or int(lengths[i])) for i in plan.indices] for plan in plans]
    assert hidden_share(mask, batches) == pytest.approx(frames, abs=0.01)
    whole = mask.model_copy(update={"equal_counts": False})
    assert hidden_share(whole, batches) == pytest.approx(0.491, abs=0.005)
    if channels is not None:
        rows = [[768] * len(batch) for batch in batches]
        assert hidden_share(config.regularization.channel_mask, rows) == pytest.approx(channels, abs=0.01)
