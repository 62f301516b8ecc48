"""With ``batches.fixed_shapes`` the shapes of an update follow from its bucket, and its losses are what they were."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.data.batches import Batch, Example, TaskBatch
from speechssl.data.sampler import BatchConfig, BatchSampler
from speechssl.data.units import Letters
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.quantizer import QuantizerConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.objective.masked_prediction import MaskedPredictionConfig
from speechssl.objective.spectral_contrast import SpectralContrastConfig
from speechssl.objective.wav2vec import Wav2vecConfig
from speechssl.train.finetune_model import FinetuneModel
from speechssl.train.labeled import LabeledCollate, RegularizationConfig
from speechssl.train.pretrain import PretrainModel

ENCODER = EncoderConfig(
    feature_encoder=FeatureEncoderConfig(dims=(8, 8), kernels=(10, 4), strides=(5, 4)),
    context=TransformerConfig(
        num_layers=1,
        model_dim=16,
        num_heads=2,
        ffn_dim=16,
        layer_drop=0.0,
        dropout=0.0,
        input_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    ),
)
GEOMETRY = FrameGeometry((10, 4), (5, 4))
MASK = MaskConfig(start_prob=0.05, span_frames=4)
OBJECTIVES = (
    ContrastiveConfig(mask=MASK, quantizer=QuantizerConfig(codebook_size=6, code_dim=12), num_distractors=9),
    ContrastiveConfig(
        mask=MASK.model_copy(update={"equal_counts": True}), quantizer=QuantizerConfig(codebook_size=6, code_dim=12)
    ),
    MaskedPredictionConfig(mask=MASK, num_clusters=4, num_bands=4),
    SpectralContrastConfig(mask=MASK, num_bands=4),
    Wav2vecConfig(),
)
LETTERS = Letters.from_texts(["abcd"])
HARDER = RegularizationConfig(speeds=(0.9, 1.0, 1.1), consistency=0.2, time_mask=MASK, channel_mask=MASK)

Collate = Callable[[Sequence[Example]], TaskBatch]


def planned(collate: Collate, *, crop: bool, fixed_shapes: bool) -> Iterator[tuple[int, TaskBatch]]:
    """The full batches of several epochs, with the bucket of each."""
    generator = np.random.default_rng(0)
    lengths = [*generator.integers(3000, 16_000, 60).tolist(), *[9000] * 12]
    waveforms = [generator.standard_normal(length).astype(np.float32) / 5 for length in lengths]
    texts = ["".join(generator.choice(list("abcd"), generator.integers(1, 20))) for _ in lengths]
    config = BatchConfig(seconds=3.0, min_seconds=0.1, num_buckets=4, fixed_shapes=fixed_shapes)
    sampler = BatchSampler(lengths, config, 0, crop=crop)
    reference = BatchSampler(lengths, config.model_copy(update={"fixed_shapes": True}), 0, crop=crop)
    for epoch in range(4):
        plans = list(zip(sampler.epoch(epoch), reference.epoch(epoch), strict=True))
        most: dict[int, int] = defaultdict(int)
        for _, fixed in plans:
            assert fixed.fixed_samples is not None
            most[fixed.fixed_samples] = max(most[fixed.fixed_samples], len(fixed.indices))
        for plan, fixed in plans:
            examples = [
                Example(index, epoch, waveforms[index][: plan.crop_samples], texts[index], plan.fixed_samples)
                for index in plan.indices
            ]
            if len(examples) == most[fixed.fixed_samples or 0]:  # but for what an epoch leaves over
                yield fixed.fixed_samples or 0, collate(examples)


def shapes(batch: Batch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Batch):
            found |= {f"{field.name}.{name}": shape for name, shape in shapes(value).items()}
        elif isinstance(value, torch.Tensor) or value is None:
            found[field.name] = None if value is None else tuple(value.shape)
    return found


def distinct(batches: Iterator[tuple[int, TaskBatch]]) -> dict[int, set[str]]:
    found = defaultdict(set)
    for bucket, batch in batches:
        found[bucket].add(str(shapes(batch)))
    return found


CASES = [
    *[
        pytest.param(config.make_collate(GEOMETRY, 0), True, id=f"{n}-{config.kind}")
        for n, config in enumerate(OBJECTIVES)
    ],
    pytest.param(LabeledCollate(GEOMETRY, 8, LETTERS, HARDER, 0), False, id="finetune"),
    pytest.param(LabeledCollate(GEOMETRY, 8, LETTERS, None, 0), False, id="finetune-plain"),
]


@pytest.mark.parametrize(("collate", "crop"), CASES)
def test_shapes_follow_from_the_bucket(collate: Collate, crop: bool) -> None:
    found = distinct(planned(collate, crop=crop, fixed_shapes=True))
    assert len(found) == 4
    assert all(len(kinds) == 1 for kinds in found.values()), found
    assert all(("'audio.lengths': None" in kind) == crop for kinds in found.values() for kind in kinds)


def test_they_do_not_unless_asked() -> None:
    for collate, crop in ((CASES[0].values[0], True), (CASES[-2].values[0], False)):
        assert any(len(kinds) > 1 for kinds in distinct(planned(collate, crop=crop, fixed_shapes=False)).values())


def sums_of(make: Callable[[], torch.nn.Module], collate: Collate, *, crop: bool, fixed_shapes: bool) -> list[Any]:
    torch.manual_seed(0)
    model = make().eval()
    found = []
    for _, batch in planned(collate, crop=crop, fixed_shapes=fixed_shapes):
        losses = model(batch, 3)
        model.zero_grad()
        sum(term.sum * (term.weight or 1) for term in losses.values() if term.sum.requires_grad).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        found.append({name: term.sum.item() for name, term in losses.items()} | {"norm": norm.item()})
    return found


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_losses_of_pretraining_stay(number: int) -> None:
    collate = OBJECTIVES[number].make_collate(GEOMETRY, 0)
    plain, fixed = (
        sums_of(lambda: PretrainModel(ENCODER, OBJECTIVES[number]), collate, crop=True, fixed_shapes=fixed_shapes)
        for fixed_shapes in (False, True)
    )
    assert fixed == [pytest.approx(sums, rel=1e-4, abs=1e-4) for sums in plain]


def test_losses_of_fine_tuning_stay() -> None:
    plain, fixed = (
        sums_of(
            lambda: FinetuneModel(CTCModel(ENCODER, len(LETTERS)), HARDER, LETTERS.blank_id),
            LabeledCollate(GEOMETRY, ENCODER.mask_dim, LETTERS, HARDER, 0),
            crop=False,
            fixed_shapes=fixed_shapes,
        )
        for fixed_shapes in (False, True)
    )
    assert fixed == [pytest.approx(sums, rel=1e-4, abs=1e-3) for sums in plain]


def test_the_room_of_a_batch_is_that_of_its_slowest_recording() -> None:
    batch = LabeledCollate(GEOMETRY, 8, LETTERS, replace_speeds(0.5), 0)(
        [replace(example, fixed_samples=1000) for example in (Example(0, 0, np.ones(1000, np.float32), "a"),)]
    )
    assert batch.audio.waveforms.shape == (1, 2001)
    assert batch.audio.lengths is not None


def replace_speeds(speed: float) -> RegularizationConfig:
    return RegularizationConfig(speeds=(speed,))
