"""A transformer that reads forward only: each frame attends to itself and to those before it.

It is wav2vec 2.0's transformer with two changes: attention sees no later frame, as in a decoder (Vaswani et al., 2017,
section 3.2.3), and the positional convolution covers a frame and those before it. So a frame's context depends on
nothing after the samples that the frame itself sees.

A stream keeps, from one piece to the next, the last ``position_kernel - 1`` projected frames and each layer's keys and
values (`Past`): its numbers are those of one pass over the whole. Without ``attention_frames`` these, and with them the
cost of a frame, grow with the recording.
"""

from typing import ClassVar, Literal

from pydantic import Field

from speechssl.model.attention import SelfAttention
from speechssl.model.position import PositionalConvolution
from speechssl.model.transformer import TransformerContext, TransformerSizes


class CausalTransformerConfig(TransformerSizes):
    """The transformer; the defaults are the sizes of wav2vec 2.0 base.

    Attributes:
        attention_frames: To how many frames each attends in each layer, itself the last of them, so that a stream takes
            the same memory and time however long it is; None is all so far.
    """

    is_causal: ClassVar[bool] = True

    kind: Literal["causal_transformer"] = "causal_transformer"
    attention_frames: int | None = Field(None, ge=1)

    def make_position(self) -> PositionalConvolution:
        """A convolution over a frame and those before it."""
        return PositionalConvolution(self.model_dim, self.position_kernel, self.position_groups, is_causal=True)

    def make_attention(self) -> SelfAttention:
        """Attention to a frame and those before it."""
        return SelfAttention(
            self.model_dim, self.num_heads, self.attention_dropout, is_causal=True, span_frames=self.attention_frames
        )

    def build(self, frame_dim: int) -> TransformerContext:
        """The network for frames of C channels."""
        return TransformerContext(self, frame_dim)
