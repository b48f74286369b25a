"""An exponential moving average of the weights: smoother than the weights themselves, and often the better model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average, one tensor beside each parameter, on the same device and split like it."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start at the network's weights.

        Args:
            network: unwrapped.
            decay: weight of the past at each update, reached after a warm-up.
        """
        self._parameters: list[Tensor] = list(network.parameters())
        self._decay = decay
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take the present weights in, after `updates` earlier updates.

        The first ones count for more, (1 + n) / (10 + n) at most, so that the random weights of the start fade soon.
        """
        decay = min(self._decay, (1 + updates) / (10 + updates))
        get_ema_multi_avg_fn(decay)(self._average, self._parameters, updates)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the network have the averaged weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._parameters, self._average, strict=True):
            present = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(present)
