"""The neighbours that a 2.5D network receives with each slice."""

import numpy as np
from numpy.typing import NDArray


def neighbour_indices(centres: NDArray[np.integer], num_slices: int, context: int) -> NDArray[np.intp]:
    """Return the numbers of each slice and its neighbours. The first and last slices stand in for missing neighbours.

    Args:
        centres: `(N,)`, slice numbers in `[0, num_slices)`.
        num_slices: number of slices of the volume.
        context: number of neighbours on each side.

    Returns:
        `(N, 1 + 2*context)`, slice numbers in `[0, num_slices)`, in ascending order along each row.
    """
    offsets = np.arange(-context, context + 1)
    return np.clip(np.asarray(centres)[:, None] + offsets, 0, num_slices - 1)
