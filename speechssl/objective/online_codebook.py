"""Codebooks that follow what they quantize: every entry is a moving average of the vectors nearest to it.

Shapes: L codebooks, V entries, N vectors, D their width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.objective.objective import AllReduce


class OnlineCodebooks(nn.Module):
    """Codebooks without gradients (Liu et al., 2023, https://arxiv.org/abs/2305.10005, section 2.2).

    An entry that gets no vector in an update stays as it is; none is revived. Vectors are added up over the batches of
    an update and over processes.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, num_codebooks: int, size: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        # Each channel has mean 0 and variance 1 over the entries, as those to come have over time.
        drawn = torch.randn(num_codebooks, size, dim)
        variance, mean = torch.var_mean(drawn, dim=1, correction=0, keepdim=True)
        self.register_buffer("sums", (drawn - mean) * torch.rsqrt(variance + 1e-5))  # (L, V, D)
        self.register_buffer("counts", torch.ones(num_codebooks, size))
        self._seen: Tensor | None = None  # (L, V, D + 1) sums and counts since the last update

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> Tensor:
        """Return the nearest entry of each: (L, N, D) float32 to (L, N) int64."""
        with torch.autocast(vectors.device.type, enabled=False):  # or near entries would be one
            entries = self.sums / self.counts[:, :, None]
            distances = entries.square().sum(dim=2)[:, None] - 2 * vectors @ entries.mT
            return distances.argmin(dim=2)

    @torch.no_grad()
    def gather(self, vectors: Tensor, ids: Tensor, weights: Tensor) -> None:
        """Remember (L, N, D) vectors and (L, N) entries for the next update; of weight (N,) 0 they do not count."""
        with torch.autocast(vectors.device.type, enabled=False):
            chosen = F.one_hot(ids, self.counts.shape[1]) * weights[:, None]  # (L, N, V)
            seen = chosen.mT @ F.pad(vectors, (0, 1), value=1.0)
        self._seen = seen if self._seen is None else self._seen + seen

    @torch.no_grad()
    def update(self, all_reduce: AllReduce) -> None:
        """Move the entries that got vectors since the last update."""
        seen, self._seen = self._seen, None
        assert seen is not None
        all_reduce(seen)
        sums, counts = seen[:, :, :-1], seen[:, :, -1]
        share = (1 - self.decay) * (counts > 0)
        self.sums.lerp_(sums, share[:, :, None])
        self.counts.lerp_(counts, share)
