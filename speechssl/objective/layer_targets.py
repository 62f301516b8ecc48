"""What a layer of a trained model says of each frame, as a target: HuBERT's second iteration and those after it.

Shapes: B batch, T samples, S frames of the encoder that learns, P frames of the model, D its width.
"""

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from speechssl.config import Config
from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import SpeechEncoder
from speechssl.objective.clusters import layer_dim
from speechssl.objective.targets import frames_at, valid_frames
from speechssl.objective.teacher import FrozenTeacher


class LayerTargetsConfig(Config):
    """Which layer of which model.

    Attributes:
        model: As for `read_model`: of any format, and with frames of any rate. Frame t of the encoder has the label of
            the model's frame number floor(t x hop / the model's hop).
        layer: From 1; 0 is the input of the first.
        clusters: A file of `speechssl cluster`, or one of fairseq's k-means, instead of clusters found in the first
            batches.
    """

    model: Path | str
    layer: int = Field(ge=0)
    clusters: Path | None = None


class LayerTargets(nn.Module):
    """The output of a layer of a model that does not learn."""

    def __init__(self, config: LayerTargetsConfig, encoder: SpeechEncoder, geometry: FrameGeometry) -> None:
        super().__init__()
        num_layers = encoder.config.context.num_layers
        if config.layer > num_layers:
            raise ConfigError(
                f"objective.targets.layer: expected 0 to {num_layers}, the layers of {config.model}, "
                f"found {config.layer}"
            )
        self.layer = config.layer
        self.geometry = geometry
        self.teacher = FrozenTeacher(encoder)
        self.dim = layer_dim(encoder, config.layer)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Describe (B, T) recordings, each as it would be alone: (B, S, D)."""
        encoder = self.teacher.network
        assert isinstance(encoder, SpeechEncoder)
        output = encoder.contextualize(encoder.extract_frames(waveforms, lengths), layer=self.layer)
        count, _ = valid_frames(output, encoder.geometry, lengths)
        return frames_at(output, count, encoder.geometry, self.geometry, waveforms.shape[1])
