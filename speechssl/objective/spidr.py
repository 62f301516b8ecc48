"""SpidR: DinoSR in which each layer of the student predicts the codes of the teacher's same layer.

Poli et al., 2025, https://arxiv.org/abs/2512.20308. It differs from DinoSR in three ways: head k reads what the
feed-forward part of the student's layer k gives, rather than all of them the student's output; the teacher begins with
weights of its own; and its decay approaches 1 exponentially. Differences from the published code are DinoSR's.

Shapes: B batch, S frames, D model dim.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn

from speechssl.data.batches import TaskBatch
from speechssl.frames import MaskConfig
from speechssl.model.encoder import EncoderConfig, Frames, SpeechEncoder
from speechssl.model.transformer import TransformerContext
from speechssl.objective.dinosr import CodesConfig, DinoSRObjective
from speechssl.objective.self_distillation import ExponentialDecay


class SpidRConfig(CodesConfig):
    """The objective; the defaults are the published ones."""

    kind: Literal["spidr"] = "spidr"
    mask: MaskConfig = MaskConfig(start_prob=0.08)
    decay: ExponentialDecay = ExponentialDecay()

    def decay_at(self, step: int) -> float:
        """Towards 1."""
        return self.decay.at(step)

    def build(self, encoder: EncoderConfig) -> "SpidRObjective":
        """Teacher, codebooks and heads for this encoder."""
        return SpidRObjective(self, encoder)


class SpidRObjective(DinoSRObjective):
    """A teacher, codebooks of its last layers, and heads on the student's."""

    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        """Begin with layers of its own."""
        self.teacher.share(encoder.context)

    def frozen(self, encoder: SpeechEncoder, step: int) -> tuple[nn.Module, ...]:
        """What no head depends on, and, from a step on, feature encoder and projection."""
        assert isinstance(encoder.context, TransformerContext)
        return *encoder.context.after_last_feed_forward, *super().frozen(encoder, step)

    def read_student(self, encoder: SpeechEncoder, frames: Frames, mask: Tensor | None) -> Sequence[Tensor]:
        """What each head reads, (B, S, D): what the feed-forward part of its layer gives."""
        assert isinstance(encoder.context, TransformerContext)
        outputs = list(encoder.context.feed_forward_outputs(frames.values, frames.lengths, mask))
        return outputs[len(outputs) - len(self.heads) :]
