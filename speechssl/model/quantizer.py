"""The product quantizer: frames to discrete targets, differentiable through the Gumbel softmax.

Shapes: N frames, C conv channels, G codebooks, V entries, E width of the target.
"""

from dataclasses import dataclass
from typing import Self, overload

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from speechssl.config import Config


class QuantizerConfig(Config):
    """The codebooks and their temperature; the defaults are the base model's.

    Attributes:
        num_codebooks: Codebooks G, of which each frame takes one entry each.
        codebook_size: Entries V of a codebook.
        code_dim: Width E of the joined entries.
        temperature_start: Gumbel temperature at step 0.
        temperature_end: Its floor.
        temperature_decay: Its factor a step.
    """

    num_codebooks: int = Field(2, ge=1)
    codebook_size: int = Field(320, ge=2)
    code_dim: int = Field(256, ge=1)
    temperature_start: float = Field(2.0, gt=0)
    temperature_end: float = Field(0.5, gt=0)
    temperature_decay: float = Field(0.999995, gt=0, le=1)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.code_dim % self.num_codebooks:
            raise ValueError(f"code_dim must be a multiple of num_codebooks, found {self.code_dim}")
        return self

    @overload
    def temperature(self, step: int) -> float: ...

    @overload
    def temperature(self, step: Tensor) -> Tensor: ...

    def temperature(self, step: int | Tensor) -> float | Tensor:
        """The Gumbel temperature at a step: a function of nothing else, so that a resumed run continues it."""
        decayed = self.temperature_start * self.temperature_decay**step
        if isinstance(decayed, Tensor):
            return decayed.clamp(min=self.temperature_end)
        return max(decayed, self.temperature_end)


@dataclass(frozen=True)
class Quantized:
    """Discrete versions of frames.

    Attributes:
        codes: (N, E) the chosen entries, joined.
        ids: (N,) int64, one number for each combination of entries.
        code_perplexity: Effective number of entries chosen, summed over the codebooks (1..V each).
        prob_perplexity: Effective number under the averaged distribution, without noise; differentiable.
    """

    codes: Tensor
    ids: Tensor
    code_perplexity: Tensor
    prob_perplexity: Tensor


class Quantizer(nn.Module):
    """Product quantization with a straight-through Gumbel softmax (Baevski et al., 2020, section 2)."""

    def __init__(self, config: QuantizerConfig, input_dim: int) -> None:
        super().__init__()
        self.config = config
        groups, size = config.num_codebooks, config.codebook_size
        self.projection = nn.Linear(input_dim, groups * size)
        self.codebooks = nn.Parameter(torch.empty(groups, size, config.code_dim // groups))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal(0, 1) weights and no bias for the logits, uniform [0, 1) entries, as published."""
        nn.init.normal_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.uniform_(self.codebooks)

    def forward(self, frames: Tensor, weights: Tensor, temperature: Tensor | float) -> Quantized:
        """Quantize frames.

        Args:
            frames: (N, C).
            weights: (N,) 1 for frames that count in the perplexities, 0 for filling.
            temperature: () of the Gumbel softmax; without effect in evaluation, which takes the likeliest entry.
        """
        with torch.autocast(frames.device.type, enabled=False):  # bfloat16 logits would make near entries one
            logits = self.projection(frames.to(self.codebooks.dtype)).unflatten(
                1, self.codebooks.shape[:2]
            )  # (N, G, V)
            return self._choose(logits, weights, temperature)

    def temperature(self, step: int | Tensor) -> Tensor:
        """Return the configuration's at a step, (); that of a step in a tensor, float64, is as exact."""
        found = self.config.temperature(step)
        if isinstance(found, Tensor):
            return found.float()
        return torch.full((), found, device=self.codebooks.device)

    def _choose(self, logits: Tensor, weights: Tensor, temperature: Tensor | float) -> Quantized:
        total = weights.sum().clamp(min=1)
        likeliest = _one_hot(logits)
        with torch.no_grad():
            code_perplexity = _perplexity(torch.einsum("n,ngv->gv", weights, likeliest) / total)
        prob_perplexity = _perplexity(torch.einsum("n,ngv->gv", weights, logits.softmax(dim=2)) / total)
        if self.training:
            # Clamped because an exponential draw can be 0, whose logarithm would poison the run.
            noise = -torch.empty_like(logits).exponential_().clamp_(min=1e-30).log()
            soft = ((logits + noise) / temperature).softmax(dim=2)
            hard = _one_hot(soft)
            chosen = hard + (soft - soft.detach())  # exactly one-hot, with the gradient of the soft choice
        else:
            chosen = hard = likeliest
        codes = torch.einsum("ngv,gve->nge", chosen, self.codebooks.float()).flatten(1)
        ids = torch.zeros_like(hard[:, 0, 0], dtype=torch.int64)
        for entries in hard.argmax(dim=2).unbind(dim=1):
            ids = ids * self.config.codebook_size + entries
        return Quantized(codes, ids, code_perplexity, prob_perplexity)


def _one_hot(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)


def _perplexity(probabilities: Tensor) -> Tensor:
    """(G, V) distributions to the sum of their perplexities."""
    return torch.exp(-(probabilities * torch.log(probabilities + 1e-7)).sum(dim=-1)).sum()
