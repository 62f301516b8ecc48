"""Objectives that predict the future take networks that do not see it, and no others."""

from typing import Any

import pytest
import torch

from speechssl.model.causal import CausalConfig
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.data2vec import Data2VecConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.model.wavlm import WavLMConfig
from speechssl.objective.apc import ApcConfig
from speechssl.objective.reversed_future import ReversedFutureConfig

SIZES = {"num_layers": 2, "model_dim": 8, "num_heads": 2, "ffn_dim": 8, "position_groups": 2}
CONTEXTS = [
    CausalTransformerConfig(**SIZES),
    CausalConfig(model_dim=8, kernels=(2, 3), norm="frame"),
    CausalConfig(model_dim=8, kernels=(2, 3)),
    TransformerConfig(**SIZES),
    WavLMConfig(**SIZES),
    Data2VecConfig(**SIZES),
]


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: f"{context.kind}-{getattr(context, 'norm', '')}")
def test_a_network_is_taken_if_no_frame_knows_later_ones(context: Any) -> None:
    features = FeatureEncoderConfig(dims=(6, 6), kernels=(4, 3), strides=(3, 2), norm="layer")
    config = EncoderConfig(feature_encoder=features, context=context)
    torch.manual_seed(0)
    encoder = SpeechEncoder(config).eval()
    waveforms = torch.randn(1, 400)
    end = encoder.geometry.span_samples(0, 20)[1]
    changed = torch.cat((waveforms[:, :end], torch.randn(1, 400 - end)), dim=1)
    before, after = (encoder.encode(x).context[:, :21] for x in (waveforms, changed))
    is_causal = torch.equal(before, after)
    for objective in (ApcConfig(), ReversedFutureConfig()):
        if is_causal:
            objective.check_encoder(config)
        else:
            with pytest.raises(ValueError, match=f'does not see the future.* found kind "{context.kind}"$'):
                objective.check_encoder(config)
