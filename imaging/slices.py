"""The neighbours that a 2.5D network sees beside each slice."""

import numpy as np
from numpy.typing import NDArray


def neighbour_indices(centres: NDArray[np.integer], num_slices: int, context: int) -> NDArray[np.intp]:
    """Return the indices of each slice and its neighbours; beyond the first and the last slice, that slice is repeated.

    Args:
        centres: `(N,)`, slice numbers in `[0, num_slices)`.
        num_slices: slices of the volume.
        context: neighbours on each side.

    Returns:
        `(N, 1 + 2*context)`, slice numbers in `[0, num_slices)`, in ascending order along each row.
    """
    offsets = np.arange(-context, context + 1)
    return np.clip(np.asarray(centres)[:, None] + offsets, 0, num_slices - 1)
