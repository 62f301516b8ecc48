"""Connectionist temporal classification (Graves et al., 2006): head, loss and greedy path.

Shapes: B batch, T samples, S frames, D model dim, V symbols, W views.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.past import Past


@dataclass(frozen=True)
class CTCOutput:
    """What a CTC model says of a batch.

    Attributes:
        log_probs: (B, S, V) float32.
        frame_lengths: (B,) int64 valid frames of each row.
    """

    log_probs: Tensor
    frame_lengths: Tensor


class CTCModel(nn.Module):
    """An encoder with a linear head over the symbols, the blank included."""

    def __init__(self, config: EncoderConfig, num_symbols: int) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(config)
        self.head = nn.Linear(config.context.model_dim, num_symbols)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> CTCOutput:
        """Score every symbol at every frame.

        Args:
            waveforms, lengths: As for `SpeechEncoder.extract_frames`.
            mask: (B, S) bool, frames hidden from the context network; or (W B, S) for W views of the batch, one after
                another, for which the feature encoder runs once.
            channel_mask: (B or W B, the encoder's mask_dim) bool, channels set to zero.
            past: From `SpeechEncoder.begin_stream`: the waveforms are what the next frames of a stream see, normalized
                already if the encoder's configuration says so.

        Returns:
            A row for each recording, or for each row of the mask.
        """
        frames = self.encoder.extract_frames(waveforms, lengths, is_normalized=past is not None)
        if mask is not None:
            frames = frames.repeated(len(mask) // len(waveforms))
        context = self.encoder.contextualize(frames, mask, channel_mask, past=past)
        with torch.autocast(context.device.type, enabled=False):
            log_probs = self.head(context.float()).log_softmax(dim=2)
        frame_lengths = frames.lengths
        if frame_lengths is None:
            frame_lengths = torch.full((context.shape[0],), context.shape[1], device=context.device)
        return CTCOutput(log_probs, frame_lengths)


def ctc_losses(
    output: CTCOutput, labels: Tensor, num_frames: Sequence[int], num_labels: Sequence[int], blank_id: int
) -> Tensor:
    """Compute the negative log likelihood of each utterance's labels.

    Args:
        labels: (sum of num_labels,) int64, the utterances' labels one after another, or (B, L), filled up.
        num_frames: Valid frames of each utterance, those of the output; on the host, or a GPU would be waited for.
        num_labels: Labels of each utterance, on the host too.
        blank_id: Of the units.

    Returns:
        (B,) float32 in nats; infinite where an utterance has too few frames for its labels.
    """
    # cuDNN's version has its own limits on lengths and gives other results; the native one is used throughout.
    with torch.backends.cudnn.flags(enabled=False):
        return F.ctc_loss(
            output.log_probs.transpose(0, 1),
            labels,
            num_frames,  # type: ignore[arg-type]  # which the documentation allows
            num_labels,  # type: ignore[arg-type]
            blank=blank_id,
            reduction="none",
        )


def mean_ctc_losses(
    output: CTCOutput,
    labels: Tensor,
    num_frames: Sequence[int],
    num_labels: Sequence[int],
    blank_id: int,
    num_views: int,
) -> Tensor:
    """Compute the mean over W views of `ctc_losses`, (B,); the output has W B rows, the views one after another."""
    losses = ctc_losses(
        output, torch.cat([labels] * num_views), [*num_frames] * num_views, [*num_labels] * num_views, blank_id
    )
    return losses.view(num_views, -1).mean(dim=0)


def consistency_losses(output: CTCOutput) -> Tensor:
    """How far what the model says of two views of the same recordings is apart (CR-CTC).

    Half the sum, over frames, of the Kullback-Leibler divergences of either view's distribution from the other's, which
    is taken as given and sends no gradient (Yao et al., 2025, https://arxiv.org/abs/2410.05101).

    Args:
        output: Of 2 B rows, the views one after another.

    Returns:
        (B,) float32 in nats.
    """
    first, second = output.log_probs.chunk(2)
    num_frames = output.frame_lengths[: len(first), None]
    valid = torch.arange(first.shape[1], device=first.device) < num_frames
    apart = _divergence(first, second) + _divergence(second, first)
    return (apart * valid).sum(dim=1) / 2


def _divergence(found: Tensor, given: Tensor) -> Tensor:
    return F.kl_div(found, given.detach(), reduction="none", log_target=True).sum(dim=2)
