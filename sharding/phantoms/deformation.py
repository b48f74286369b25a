"""Smooth random deformations without folds."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from upfield.sharding.phantoms.anatomy import COARSE_KNOT_MM, F32, F64, FINE_KNOT_MM, LEAST_JACOBIAN, TemplateGrid
from upfield.sharding.physics.smooth_field import cubic_spline

# The displacement is a cubic B-spline on this lattice.
LATTICE_MM = 9.0
# The Jacobian is checked this often per knot along each axis. Between these places it changes little.
CHECKS_PER_KNOT = 2


@dataclass(frozen=True)
class Deformation:
    """Map from places in a drawn head to places in the head that it was made from, both in mm."""

    knots_mm: F32
    """`(3, A, B, C)`, displacement at the knots."""
    first_mm: F64
    """`(3,)`, place of the first knot along each axis."""
    matrix: F64
    """`(3, 3)`, rotation, scale and mirroring, applied after the displacement."""

    def bases(self, axis: int, places_mm: NDArray[np.floating]) -> F32:
        """Return the weight of each knot at places along an axis, `(places, knots)`."""
        return _bspline((places_mm - self.first_mm[axis]) / LATTICE_MM, self.knots_mm.shape[axis + 1])

    def least_jacobian(self) -> float:
        """Return the smallest determinant of the displacement's Jacobian, on a lattice finer than the knots."""
        return float(_jacobians(self.knots_mm).min())


def draw_deformation(
    rng: np.random.Generator,
    grid: TemplateGrid,
    *,
    coarse_rms_mm: float,
    fine_rms_mm: float,
    rotation_deg: tuple[float, float, float],
    scale: tuple[float, float, float],
    mirrored: bool,
) -> Deformation:
    """Draw a deformation, and shrink its displacement until it has no folds.

    Args:
        rng: generator that draws the displacement.
        grid: grid of the head, whose centre is the origin.
        coarse_rms_mm: displacement of lobes along each axis.
        fine_rms_mm: displacement of gyri along each axis.
        rotation_deg: rotations about the three axes, in order.
        scale: size of the drawn head relative to the other.
        mirrored: whether right becomes left.
    """
    half_mm = np.array([size * mm / 2 for size, mm in zip(grid.shape, grid.spacing_mm, strict=True)])
    counts = np.ceil(2 * half_mm / LATTICE_MM).astype(int) + 3
    first_mm = -half_mm - LATTICE_MM
    knots = np.zeros((3, *counts), np.float32)
    for rms_mm, knot_mm in ((coarse_rms_mm, COARSE_KNOT_MM), (fine_rms_mm, FINE_KNOT_MM)):
        weights = [
            _bspline(np.arange(count) * LATTICE_MM / knot_mm + 1, math.ceil(count * LATTICE_MM / knot_mm) + 3)
            for count in counts
        ]
        for component in knots:
            draws = rng.standard_normal([weight.shape[1] for weight in weights], dtype=np.float32)
            field = np.einsum("ai,bj,ck,ijk->abc", *weights, draws, optimize=True)
            component += field * np.float32(rms_mm / max(math.sqrt(np.mean(field**2)), 1e-6))
    knots -= knots.mean(axis=(1, 2, 3), keepdims=True)
    while _jacobians(knots).min() <= LEAST_JACOBIAN:
        knots *= np.float32(0.93)
    turn = Rotation.from_euler("xyz", rotation_deg, degrees=True).as_matrix()
    matrix = np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0]) @ turn @ np.diag(1 / np.asarray(scale))
    return Deformation(knots, first_mm, matrix)


def _bspline(place: NDArray[np.floating], knots: int, order: int = 0) -> F32:
    """Return the weights `(places, knots)` of cubic B-splines at places in knots; with order 1, their derivatives."""
    signed = np.asarray(place)[:, None] - np.arange(knots)
    away = abs(signed)
    weights = cubic_spline(away)
    if order == 1:
        weights = np.where(away < 1, -2 * away + 1.5 * away**2, -(np.maximum(0, 2 - away) ** 2) / 2) * np.sign(signed)
    return weights.astype(np.float32)


def _jacobians(knots_mm: F32) -> F32:
    """Compute the determinant of place plus displacement on a lattice `(A, B, C)` finer than the knots."""
    counts = knots_mm.shape[1:]
    places = [np.arange(1, count - 2 + 0.01, 1 / CHECKS_PER_KNOT) for count in counts]
    plain = [_bspline(place, count) for place, count in zip(places, counts, strict=True)]
    sloped = [_bspline(place, count, 1) / np.float32(LATTICE_MM) for place, count in zip(places, counts, strict=True)]
    gradient = np.empty((*map(len, places), 3, 3), np.float32)
    for axis in range(3):
        weights = [sloped[each] if each == axis else plain[each] for each in range(3)]
        for component in range(3):
            gradient[..., component, axis] = np.einsum(
                "ai,bj,ck,ijk->abc", *weights, knots_mm[component], optimize=True
            ) + (component == axis)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.moveaxis(gradient, (-2, -1), (0, 1))
    return xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)
