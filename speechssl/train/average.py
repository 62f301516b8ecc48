"""The moving average of the weights of a run, which is what is evaluated and saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from speechssl.objective.teacher import follow, split_weights
from speechssl.train.sharding import divided_as

_RAW = "raw"  # in a training state, of the weights that learn


class WeightAverage:
    """The average of a model's weights over its updates, each weighing ``decay`` times as much as the one after it.

    At the start, when there are few updates to average, ``decay`` is at most (1 + n) / (10 + n) after n of them, as in
    TensorFlow's ExponentialMovingAverage. Only parameters are averaged: buffers, such as codebooks, are already what
    has been counted. The average starts as the weights are; those of teachers and what is not saved with the model stay
    out.

    Args:
        model: What is trained.
        saved_module: What of it the model's files hold.
        decay: Per update.
    """

    def __init__(self, model: nn.Module, saved_module: nn.Module, decay: float) -> None:
        self.decay = decay
        names = split_weights(model, saved_module)[0]
        self._weights = {name: weight for name, weight in model.named_parameters() if name in names}
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the weights after so many updates."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self._averages.items():
            follow(average, self._weights[name], decay)

    @contextmanager
    def in_place(self) -> Iterator[dict[str, Tensor]]:
        """Give the model the averages meanwhile.

        Yields:
            The weights that learn, as a training state holds them: the model's files hold the averages.
        """
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        try:
            self._copy(self._averages)
            yield {f"{_RAW}/{name}": weight for name, weight in own.items()}
        finally:
            self._copy(own)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the weights that learn out of a training state, and give them to the model."""
        self._copy({name: tensors.pop(f"{_RAW}/{name}") for name in self._weights})

    @torch.no_grad()
    def _copy(self, tensors: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(divided_as(tensors[name], weight))
