import numpy as np

from upfield.imaging.affine import angles_deg, assumed_affine


def test_the_angle_of_a_column_of_length_0_is_nan():
    first = np.array([[1.0, 1, 0], [0, 0, 0], [0, 0, 0]])
    second = np.array([[0.0, 1, 1], [2, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(angles_deg(first, second), [90, 45, np.nan])


def test_an_assumed_affine_puts_a_slice_where_its_plane_is():
    np.testing.assert_allclose(
        assumed_affine((5, 3), np.array([1.0, 2, 4]), "LPS"), [[-1, 0, 0, 2], [0, -2, 0, 2], [0, 0, 4, 0], [0, 0, 0, 1]]
    )
