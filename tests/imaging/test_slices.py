"""Every slice has as many neighbours as the context requires, also at the ends of the volume."""

import numpy as np
import pytest

from upfield.imaging.slices import neighbour_indices


def test_edge_slices_are_repeated() -> None:
    indices = neighbour_indices(np.array([0, 2, 4]), num_slices=5, context=2)
    np.testing.assert_array_equal(indices, [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [2, 3, 4, 4, 4]])


@pytest.mark.parametrize("num_slices", [1, 2, 7])
@pytest.mark.parametrize("context", [0, 1, 8])
def test_neighbours_are_the_window_of_an_edge_padded_volume(num_slices: int, context: int) -> None:
    centres = np.arange(num_slices)
    padded = np.pad(centres, context, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 1 + 2 * context)
    np.testing.assert_array_equal(neighbour_indices(centres, num_slices, context), windows)
