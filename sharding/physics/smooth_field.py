"""Smooth random fields, such as a coil's sensitivity, and the splines that they are made of."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Distance of the knots of a coil's sensitivity.
BIAS_KNOT_MM = 90.0


def cubic_spline(away: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the cubic B-spline, of any shape, at distances from its knot: 2/3 at 0, and 0 from 2 on."""
    return np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.maximum(0, 2 - away) ** 3 / 6)


def draw_smooth_field(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float], knot_mm: float
) -> NDArray[np.float32]:
    """Draw a smooth field `(I, J, K)` float32 of mean 0 and mean square 1: a cubic B-spline with random coefficients.

    Args:
        rng: generator that draws the coefficients.
        shape: voxels along each axis.
        spacing_mm: voxel size along each axis.
        knot_mm: distance of the knots.
    """
    bases: list[NDArray[np.float32]] = []
    for count, step_mm in zip(shape, spacing_mm, strict=True):
        position = (np.arange(count) + 0.5) * (step_mm / knot_mm)
        away = np.abs(position[:, None] - np.arange(-1, math.ceil(position[-1]) + 2))
        bases.append(cubic_spline(away).astype(np.float32))
    coefficients = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    last = np.tensordot(bases[0], coefficients, axes=(1, 0)) @ bases[2].T
    field = np.matmul(bases[1], last)
    field -= field.mean()
    # An inner product would depend on the number of threads.
    field /= np.float32(math.sqrt(float(np.mean(np.square(field)))))
    return field
