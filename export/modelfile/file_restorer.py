"""The interface of the engines that run a model file."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import RunError
from upfield.export.modelfile.card import read_card


class FileRestorer(ABC):
    """Restores batches of slices with a model file; any number of threads may share it."""

    provider: str
    """What runs the network, for people to read."""
    library: str
    """Name of the package that runs the network."""
    library_version: str
    """Version of this package."""

    def __init__(self, path: Path) -> None:
        """Read the metadata of the file.

        Raises:
            InputError: the file is not a model file of this version.
        """
        self.path = path
        self.card = read_card(path)
        """Metadata of the model."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the restored slice."""
        return self.card.context

    @property
    def normalisation(self) -> str:
        """Name of the method that brings intensities to [0, 1]."""
        return self.card.normalisation

    def warm_up(self, low_shape: tuple[int, int, int, int]) -> None:
        """Run a batch of zeros of this shape, because the first batch of each shape is slow, especially on a GPU."""
        self.run(np.zeros(low_shape, dtype=np.float32))

    def restore(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Restore slices.

        Args:
            low: `(N, 1 + 2*context, H, W)` float32 in [0, 1].

        Returns:
            `(N, 1, H, W)` float32, clipped to [0, 1].

        Raises:
            RunError: a restored value is not finite.
        """
        restored = self.run(low)
        if not np.isfinite(restored).all():
            raise RunError(f"{self.path}: restored slices are not finite. Copy the model file or export the run again.")
        return np.clip(restored, 0, 1)

    @abstractmethod
    def run(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network: `low` `(N, 1 + 2*context, H, W)` float32 to `(N, 1, H, W)` float32, not clipped."""

    @abstractmethod
    def stop(self) -> None:
        """Cancel calls: the call that runs in another thread, and every later call, end at once with an error."""


def pad_batch(low: NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
    """Repeat the last slice of `low` `(N, C, H, W)` until there are `batch_size` slices; larger batches stay."""
    count = len(low)
    return low[np.minimum(np.arange(batch_size), count - 1)] if count < batch_size else low
