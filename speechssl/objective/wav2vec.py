"""The objective of wav2vec: tell the frames that follow from distractors (Schneider et al., 2019).

Shapes: B batch, S frames, C conv channels, D model dim, N prediction steps, K distractors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import Example, TaskBatch, collate_audio
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.distractors import draw_distractors
from speechssl.objective.objective import Losses, Objective, ObjectiveConfig, Term
from speechssl.rng import keyed_generator

_DISTRACT = 4  # the purpose of the generator that draws distractors


class Wav2vecConfig(ObjectiveConfig):
    """The objective; the defaults are the published ones."""

    best_metric: ClassVar[str] = "loss"
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    kind: Literal["wav2vec"] = "wav2vec"
    num_steps: int = Field(12, ge=1)  # following frames that are predicted, N
    num_distractors: int = Field(10, ge=1)

    @property
    def chance(self) -> Mapping[str, float]:
        """Among a target and its distractors."""
        return {"accuracy": 1 / (1 + self.num_distractors)}

    def min_frames(self, geometry: FrameGeometry) -> int:
        """A first frame and the nearest that is predicted from it."""
        return prediction_offset(geometry) + 1

    def make_collate(self, geometry: FrameGeometry, seed: int) -> "Wav2vecCollate":
        """What draws distractors."""
        return Wav2vecCollate(geometry, self.num_steps, self.num_distractors, seed)

    def build(self, encoder: EncoderConfig) -> "Wav2vecObjective":
        """The prediction of this encoder's frames from its context."""
        features = encoder.feature_encoder
        return Wav2vecObjective(self, features.geometry, features.dims[-1], encoder.context.model_dim)


@dataclass(frozen=True)
class Wav2vecBatch(TaskBatch):
    """Audio and what its frames are compared with; it counts "pairs" of a frame and one of the N that follow it."""

    distractors: Tensor  # (B, S, K) int64 positions among the utterance's own frames, never the frame itself


@dataclass(frozen=True)
class Wav2vecCollate:
    """Makes a batch in the loader's worker: distractors depend on (seed, epoch, utterance) alone."""

    geometry: FrameGeometry
    num_steps: int
    num_distractors: int
    seed: int

    def __call__(self, examples: Sequence[Example]) -> Wav2vecBatch:
        """Draw distractors, and stack the audio.

        A target frame's distractors are the same for all N steps. The published code draws them frame by frame but
        reads the array as if it were distractor by distractor, so that there a frame may be its own distractor.
        """
        lengths = [self.geometry.num_frames(len(example.waveform)) for example in examples]
        distractors = torch.zeros(len(examples), max(lengths), self.num_distractors, dtype=torch.int64)
        for row, length, example in zip(distractors, lengths, examples, strict=True):
            generator = keyed_generator(self.seed, example.epoch, example.index, _DISTRACT)
            row[:length] = torch.from_numpy(draw_distractors(length, self.num_distractors, generator))
        offset = prediction_offset(self.geometry)
        count = sum(max(length - offset - step, 0) for length in lengths for step in range(self.num_steps))
        return Wav2vecBatch(collate_audio(examples), {"pairs": count}, distractors)


def prediction_offset(geometry: FrameGeometry) -> int:
    """How many frames away the nearest one is that shares no sample: 3 in the published models."""
    return -(-geometry.receptive_field_samples // geometry.hop_samples)


class Wav2vecObjective(Objective):
    """Predictions of following frames and their binary loss (Schneider et al., 2019, section 2.2)."""

    def __init__(self, config: Wav2vecConfig, geometry: FrameGeometry, frame_dim: int, context_dim: int) -> None:
        super().__init__()
        self.offset = prediction_offset(geometry)
        self.weight = nn.Parameter(torch.empty(config.num_steps, frame_dim, context_dim))
        self.bias = nn.Parameter(torch.empty(frame_dim))  # one for all steps, as published
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize every parameter as published: the default of PyTorch's ``ConvTranspose2d``.

        | parameter | initialization |
        |---|---|
        | weight | uniform within +-1 / sqrt(C x N) |
        | bias | uniform within +-1 / sqrt(C x N) |
        """
        bound = self.weight[:, :, 0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, encoder: SpeechEncoder, batch: Wav2vecBatch, step: int) -> Losses:
        """Compare what the context predicts with the frames that follow.

        Returns:
            Sums over pairs of a frame and one of the N that follow it: the loss, and the pairs in which the right frame
            scores higher than every distractor.
        """
        frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
        context = encoder.contextualize(frames)
        clean = frames.values
        if batch.audio.clean is not None:
            clean = encoder.extract_frames(batch.audio.clean, batch.audio.lengths).values
        predictions = self._predictions(context)
        with torch.autocast(context.device.type, enabled=False):
            candidates = _candidates(clean.float(), batch.distractors)
            logits = predictions.float() @ candidates.transpose(2, 3)  # (B, S, N, 1 + K)
            weights = self._weights(logits, frames.lengths)
            is_right = torch.zeros_like(logits)
            is_right[:, :, :, 0] = 1
            loss = F.binary_cross_entropy_with_logits(logits, is_right, weights[:, :, :, None], reduction="sum")
        correct = logits[:, :, :, 0] > logits[:, :, :, 1:].amax(dim=3)
        return {"prediction": Term(loss, "pairs", 1.0), "accuracy": Term((correct * weights).sum(), "pairs")}

    def _predictions(self, context: Tensor) -> Tensor:
        """(B, S, D) to (B, S, N, C): what the frames before each frame expect it to be, the nearest of them first."""
        num_steps = len(self.weight)
        predictions = F.linear(context, self.weight.flatten(0, 1), self.bias.repeat(num_steps))
        ahead = predictions.view(*context.shape[:2], num_steps, -1).unbind(dim=2)
        # What is rolled over the utterance's end has no weight in the loss.
        return torch.stack([step.roll(self.offset + number, dims=1) for number, step in enumerate(ahead)], dim=2)

    def _weights(self, logits: Tensor, frame_lengths: Tensor | None) -> Tensor:
        """(B or 1, S, N): 1 where a frame is valid and the one that predicts it exists, else 0."""
        position = torch.arange(logits.shape[1], device=logits.device)[:, None]
        predicted = position >= self.offset + torch.arange(logits.shape[2], device=logits.device)
        if frame_lengths is None:
            return predicted[None].type_as(logits)
        return (predicted & (position < frame_lengths[:, None, None])).type_as(logits)


def _candidates(frames: Tensor, distractors: Tensor) -> Tensor:
    """(B, S, C) to (B, S, 1 + K, C): each frame, then its distractors."""
    batch, length, _ = frames.shape
    own = torch.arange(length, device=frames.device).expand(batch, -1)
    positions = torch.cat((own[:, :, None], distractors), dim=2)
    rows = length * torch.arange(batch, device=frames.device)[:, None, None]
    return F.embedding(positions + rows, frames.flatten(0, 1))
