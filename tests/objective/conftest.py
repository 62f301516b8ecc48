"""A tiny encoder and recordings for it: a frame every 20 samples, each seeing 25."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.data.batches import Example
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig

GEOMETRY = FrameGeometry((10, 4), (5, 4))


@pytest.fixture
def geometry() -> FrameGeometry:
    return GEOMETRY


@pytest.fixture
def make_encoder() -> Callable[..., SpeechEncoder]:
    """Make an encoder in evaluation mode: ``make_encoder(norm="group", norm_first=False, normalize=False)``."""

    def make(
        norm: Any = "group", norm_first: bool = False, normalize: bool = False, geometry: FrameGeometry = GEOMETRY
    ) -> SpeechEncoder:
        torch.manual_seed(0)
        convolutions = FeatureEncoderConfig(
            dims=(12, 16), kernels=geometry.kernels, strides=geometry.strides, norm=norm, bias=norm == "layer"
        )
        context = TransformerConfig(
            num_layers=2, model_dim=32, num_heads=4, ffn_dim=48, position_kernel=8, position_groups=4
        ).model_copy(update={"norm_first": norm_first})
        config = EncoderConfig(feature_encoder=convolutions, context=context, normalize_waveforms=normalize)
        return SpeechEncoder(config).eval()

    return make


@pytest.fixture
def make_examples() -> Callable[..., list[Example]]:
    """Make utterances of noise: ``make_examples(lengths)``."""

    def make(lengths: Sequence[int] = (620, 1000, 185, 45, 437, 90)) -> list[Example]:
        generator = np.random.default_rng(0)
        return [
            Example(index, 0, generator.standard_normal(length).astype(np.float32) / 5, None)
            for index, length in enumerate(lengths)
        ]

    return make
