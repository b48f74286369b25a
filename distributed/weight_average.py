"""An exponential moving average of the weights, which is smoother than the weights and often the better model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The averaged weights: one tensor per parameter, on the same device and split in the same way."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start the average at the network's current weights.

        Args:
            network: network without wrappers.
            decay: weight of the previous average in each update. During a warm-up, the weight is smaller.
        """
        self._parameters: list[Tensor] = list(network.parameters())
        self._decay = decay
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Add the current weights to the average.

        After n updates, the decay is at most (1 + n) / (10 + n), so that the random initial weights soon lose their
        influence.

        Args:
            updates: number of earlier updates.
        """
        decay = min(self._decay, (1 + updates) / (10 + updates))
        get_ema_multi_avg_fn(decay)(self._average, self._parameters, updates)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the network's weights by their average inside the `with` block."""
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
