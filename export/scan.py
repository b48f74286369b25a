"""One scan through a model: RAS+, an isotropic grid over the same field of view, slices, back to the scan's axes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from upfield.sharding.errors import InputError
from upfield.sharding.intensity import NORMALISATION, normalise
from upfield.sharding.resample import box_centre, resample_box
from upfield.sharding.volume import Volume, from_ras, read_volume

SPACING_MM = 1.0
MIN_EXTENT_MM, MAX_EXTENT_MM = 9.0, 600.0


class Restorer(Protocol):
    """Whatever maps low-field slices to restored ones."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the one restored."""
        ...

    @property
    def normalisation(self) -> str:
        """How intensities must be brought to [0, 1]."""
        ...

    def restore(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map `(N, 1 + 2*context, H, W)` in [0, 1] to `(N, 1, H, W)` in [0, 1]."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A scan as a model takes it."""

    low: NDArray[np.float32]
    """`(X, Y, Z)` in [0, 1], RAS+, 1 mm isotropic over the scan's field of view."""
    affine: NDArray[np.float64]
    """`(4, 4)`: voxel index of `low` -> world mm."""
    axcodes: tuple[str, str, str]
    """The scan's own axes, as nibabel names them."""


def prepare(path: Path, normalisation: str, where: str) -> Prepared:
    """Read a scan and bring it to the grid and the intensities that a model takes.

    Args:
        path: NIfTI file in any orientation and on any grid.
        normalisation: the model's.
        where: how messages name the scan.

    Raises:
        VolumeError: the file is not one 3-D real volume.
        InputError: the field of view is too small, or this version cannot bring intensities to [0, 1] in that way.
    """
    if normalisation != NORMALISATION:
        raise InputError(
            f"{where}: expected a model of normalisation {NORMALISATION!r}, found {normalisation!r}; use the version "
            "of upfield that exported it"
        )
    scan = read_volume(path)
    grid = isotropic(scan, where)
    return Prepared(normalise(grid.voxels, where), grid.affine, scan.axcodes)


def finish(prepared: Prepared, restored: NDArray[np.float32]) -> Volume:
    """Turn what a model made of `prepared.low`, `(X, Y, Z)`, back to the scan's own axis order."""
    return from_ras(Volume(restored, prepared.affine, prepared.axcodes))


def enhance_volume(
    path: Path, restorer: Restorer, batch_size: int, done: Callable[[int], None] = lambda _: None
) -> Volume:
    """Enhance one scan.

    Args:
        path: NIfTI file in any orientation and on any grid.
        restorer: the model.
        batch_size: slices restored at once.
        done: called with the number of slices after each batch.

    Returns:
        Voxels `(I, J, K)` in [0, 1] in the scan's own axis order, and the affine that puts them where the scan was.

    Raises:
        VolumeError: the file is not one 3-D real volume.
        InputError: the field of view is too small.
    """
    prepared = prepare(path, restorer.normalisation, str(path))
    return finish(prepared, restore_volume(prepared.low, restorer, batch_size, done))


def isotropic(scan: Volume, where: str) -> Volume:
    """Interpolate a RAS+ volume to 1 mm voxels over the same field of view, edge to edge.

    Raises:
        InputError: the field of view is smaller than the network's least slice, or larger than any head.
    """
    extent_mm = np.array(scan.voxels.shape) * scan.spacing_mm
    if extent_mm[1:].min() < MIN_EXTENT_MM:
        raise InputError(
            f"{where}: expected a field of view of at least {MIN_EXTENT_MM:g} mm in every sagittal slice, found "
            f"{' x '.join(f'{mm:g}' for mm in extent_mm)} mm; this is no head"
        )
    if extent_mm.max() > MAX_EXTENT_MM:
        raise InputError(
            f"{where}: expected a field of view of at most {MAX_EXTENT_MM:g} mm, found "
            f"{' x '.join(f'{mm:g}' for mm in extent_mm)} mm; mend the spacing in the header"
        )
    count_i, count_j, count_k = (max(round(float(mm) / SPACING_MM), 1) for mm in extent_mm)
    shape = (count_i, count_j, count_k)
    # A field of view that is no whole number of mm is covered by voxels a little off 1 mm.
    spacing_mm = extent_mm / np.array(shape)
    voxels = resample_box(scan.voxels, scan.spacing_mm, box_centre(scan.voxels.shape), shape, spacing_mm)
    ratio = spacing_mm / scan.spacing_mm
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = (ratio - 1) / 2
    return Volume(voxels, scan.affine @ step, scan.axcodes)


def restore_volume(
    low: NDArray[np.float32], restorer: Restorer, batch_size: int, done: Callable[[int], None] = lambda _: None
) -> NDArray[np.float32]:
    """Restore a volume slice by slice along its sagittal axis.

    Args:
        low: `(X, Y, Z)` in [0, 1].
        restorer: the model.
        batch_size: slices restored at once; the last batch is filled up, so that every one has the same shape.
        done: called with the number of slices after each batch.

    Returns:
        `(X, Y, Z)` float32 in [0, 1].
    """
    count, context = len(low), restorer.context
    offsets = np.arange(-context, context + 1)
    restored = np.empty_like(low)
    for start in range(0, count, batch_size):
        centres = np.minimum(np.arange(start, start + batch_size), count - 1)
        batch = low[np.clip(centres[:, None] + offsets, 0, count - 1)]
        kept = min(batch_size, count - start)
        restored[start : start + kept] = restorer.restore(batch)[:kept, 0]
        done(kept)
    return restored


def write_volume(volume: Volume, path: Path) -> None:
    """Write `volume` as a float32 NIfTI file in scanner space."""
    image = nib.Nifti1Image(volume.voxels, volume.affine)  # pyright: ignore[reportPrivateImportUsage]
    image.header.set_xyzt_units("mm")
    image.set_qform(volume.affine, code="scanner")
    image.set_sform(volume.affine, code="scanner")
    nib.save(image, path)  # pyright: ignore[reportPrivateImportUsage]
