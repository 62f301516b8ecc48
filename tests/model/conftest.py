"""Encoders small enough for a test: 20 samples a frame, 35 samples seen by each."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig

TinyConfig = Callable[..., EncoderConfig]
PaddedBatch = tuple[Tensor, Tensor]


def _tiny_config(
    *,
    norm: Literal["group", "layer", "utterance"] = "group",
    norm_first: bool = False,
    normalize_waveforms: bool | float = False,
    gradient_scale: float = 0.1,
    **context: Any,
) -> EncoderConfig:
    quiet = {"input_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}
    sizes = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 48, "position_kernel": 8}
    return EncoderConfig(
        feature_encoder=FeatureEncoderConfig(
            dims=(12, 16, 24),
            kernels=(10, 4, 2),
            strides=(5, 2, 2),
            norm=norm,
            bias=norm == "layer",
            gradient_scale=gradient_scale,
        ),
        context=TransformerConfig(**(sizes | quiet | {"position_groups": 4, "norm_first": norm_first} | context)),
        normalize_waveforms=normalize_waveforms,
    )


@pytest.fixture
def tiny_config() -> TinyConfig:
    """Make the configuration of a tiny encoder, without noise unless asked for."""
    return _tiny_config


@pytest.fixture
def padded_batch() -> PaddedBatch:
    """Noise of several lengths, loudnesses and offsets, zero behind each row's length; row 2 has a single frame."""
    torch.manual_seed(0)
    lengths = torch.tensor([600, 1000, 35, 437, 1000])
    waveforms = torch.randn(5, 1000) * torch.tensor([0.1, 0.02, 0.3, 1.0, 0.2])[:, None]
    waveforms += torch.tensor([0.0, 0.1, -0.2, 0.0, 0.5])[:, None]
    return waveforms * (torch.arange(1000) < lengths[:, None]), lengths
