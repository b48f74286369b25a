"""Compare where two volumes lie in the world, by their headers, to judge whether they can be the fields of one pair."""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from upfield.imaging.header import spacing_of
from upfield.imaging.volume_header import VolumeHeader

# Axes are resampled one by one, which is wrong for fields that are rotated against each other.
MAX_TILT_DEG = 2.0
# Beyond the end of one field, a sample is black in that field and not in the other.
LEAST_COVER = 0.8
# `fit: resize` lays corner on corner. What lies more than two slices of 5 mm away is another part of the head.
MAX_SHIFT_MM = 10.0
AXES = ("left-right", "posterior-anterior", "inferior-superior")


@dataclass(frozen=True)
class Extent:
    """The box that a volume fills, turned to RAS+."""

    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm; its columns point right, anterior and superior."""
    shape: NDArray[np.int64]
    """`(3,)`, voxels along each axis."""
    is_placed: bool
    """Whether its files say where in the scanner it lies; otherwise only its axes mean something."""
    stacked_along: int | None = None
    """The axis along which its slices follow one another; None for a volume in one file."""

    @classmethod
    def of(cls, header: VolumeHeader) -> "Extent":
        """Build the extent of a volume from its header, whose affine must have three axes."""
        orientation = io_orientation(header.affine)
        axes = orientation[:, 0].astype(int)
        shape = np.empty(3, dtype=np.int64)
        shape[axes] = header.shape
        along = None if header.stacked_axis is None else int(axes[header.stacked_axis])
        return cls(header.affine @ inv_ornt_aff(orientation, header.shape), shape, header.is_placed, along)

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis, `(3,)`."""
        return spacing_of(self.affine)

    @property
    def axes(self) -> NDArray[np.float64]:
        """Where its axes point: three unit columns, `(3, 3)`."""
        return self.affine[:3, :3] / self.spacing_mm

    @property
    def size_mm(self) -> NDArray[np.float64]:
        """Its length along each axis, `(3,)`."""
        return self.shape * self.spacing_mm

    @property
    def bounds_mm(self) -> NDArray[np.float64]:
        """Lowest and highest world coordinates that its voxels reach, `(2, 3)`."""
        corners = np.array(list(product(*([-0.5, size - 0.5] for size in self.shape))))
        world = corners @ self.affine[:3, :3].T + self.affine[:3, 3]
        return np.stack([world.min(axis=0), world.max(axis=0)])


def tilt_problem(low: Extent, high: Extent) -> str | None:
    """Return what is wrong with fields rotated against each other, which resampling axis by axis cannot correct."""
    if (tilt_deg := _tilt_deg(low.axes, high.axes)) <= MAX_TILT_DEG:
        return None
    return (
        f"expected low and high field turned against each other by at most {MAX_TILT_DEG:g} degrees, found "
        f"{tilt_deg:.1f}. Register them with align: rigid."
    )


def resolution_doubt(low: Extent, high: Extent) -> str | None:
    """Return a doubt about a pair whose low field has the smaller voxels; None for others."""
    sizes_mm3 = [float(np.prod(extent.spacing_mm)) for extent in (low, high)]
    if sizes_mm3[0] >= sizes_mm3[1]:
        return None
    return (
        f"the low field has the smaller voxels: {sizes_mm3[0]:.2g} mm3, the high field {sizes_mm3[1]:.2g} mm3. "
        "Check that the two are not exchanged."
    )


def place_doubt(
    low: Extent, high: Extent, fit: Literal["resize", "crop_pad"], grid_mm: NDArray[np.float64]
) -> str | None:
    """Return a doubt about two unregistered fields that do not seem to show the same part of a head.

    Args:
        low: the low field.
        high: the high field.
        fit: how both are resampled to the grids.
        grid_mm: `(3,)`, side lengths of the box that samples show; used if `fit` is `crop_pad`.

    Returns:
        The doubt in words; None if they do, or if their files do not say where they lie.
    """
    if not (low.is_placed and high.is_placed):
        return None
    bounds_mm = low.bounds_mm, high.bounds_mm
    if fit == "resize":
        apart_mm = np.abs(bounds_mm[0] - bounds_mm[1]).max(axis=0)
        worst = int(np.argmax(apart_mm))
        if apart_mm[worst] <= MAX_SHIFT_MM:
            return None
        return (
            f"fit: resize lays the borders of both fields of view on each other, but some are "
            f"{apart_mm[worst]:.0f} mm apart {AXES[worst]} ({low.size_mm[worst]:.0f} mm of low, "
            f"{high.size_mm[worst]:.0f} mm of high field). Use fit: crop_pad, which keeps every voxel's place, or "
            "align: rigid."
        )
    shared_mm = np.minimum(bounds_mm[0][1], bounds_mm[1][1]) - np.maximum(bounds_mm[0][0], bounds_mm[1][0])
    wanted_mm = np.minimum(grid_mm, np.maximum(*(highest - lowest for lowest, highest in bounds_mm)))
    least = int(np.argmin(shared_mm / wanted_mm))
    if shared_mm[least] >= LEAST_COVER * wanted_mm[least]:
        return None
    return (
        f"both fields must show the whole head, but their fields of view share only {max(shared_mm[least], 0):.0f} of "
        f"{wanted_mm[least]:.0f} mm {AXES[least]}. Complete the shorter scan, or register the two with align: rigid."
    )


def _tilt_deg(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    cosine = np.clip((np.trace(high.T @ low) - 1) / 2, -1, 1)
    return float(np.degrees(np.arccos(cosine)))
