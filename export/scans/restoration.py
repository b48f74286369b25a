"""Restores a volume slice by slice along its sagittal axis, in batches."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from upfield.export.modelfile.card import ModelCard
from upfield.imaging.slices import neighbour_indices


class Restorer(Protocol):
    """A model that maps low-field slices to restored slices."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the restored slice."""
        ...

    @property
    def normalisation(self) -> str:
        """Name of the method that brings intensities to [0, 1]."""
        ...

    def restore(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map `(N, 1 + 2*context, H, W)` in [0, 1] to `(N, 1, H, W)` in [0, 1]."""
        ...


class ScanRestorer(Restorer, Protocol):
    """A model that also states how a scan is prepared for it."""

    @property
    def card(self) -> ModelCard:
        """Metadata of the model."""
        ...


def slice_batches(
    low: NDArray[np.float32], context: int, batch_size: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Split a volume into batches of neighbouring slices; only one batch is in memory besides the volume.

    Args:
        low: `(X, Y, Z)` in [0, 1], or `(X, 1 + 2*context, Y, Z)` if the slices already come with their neighbours, as
            they do in shards.
        context: neighbouring slices that the model takes on each side.
        batch_size: slices of a batch; the last batch may have fewer.

    Yields:
        The slices along X that a batch restores, and the model's input for them, `(N, 1 + 2*context, Y, Z)`.
    """
    for start in range(0, len(low), batch_size):
        stop = min(start + batch_size, len(low))
        rows = slice(start, stop)
        yield rows, low[rows] if low.ndim == 4 else low[neighbour_indices(np.arange(start, stop), len(low), context)]


def restore_volume(
    low: NDArray[np.float32], restorer: Restorer, batch_size: int, advance: Callable[[int], None] = lambda _: None
) -> NDArray[np.float32]:
    """Restore a volume slice by slice.

    Args:
        low: `(X, Y, Z)` or `(X, 1 + 2*context, Y, Z)` in [0, 1]; see `slice_batches`.
        restorer: the model.
        batch_size: slices restored at once.
        advance: called with the number of slices after each batch.

    Returns:
        `(X, Y, Z)` float32 in [0, 1].
    """
    restored = np.empty((len(low), *low.shape[-2:]), dtype=np.float32)
    for rows, batch in slice_batches(low, restorer.context, batch_size):
        restored[rows] = restorer.restore(batch)[:, 0]
        advance(len(batch))
    return restored
