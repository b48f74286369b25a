"""Read NIfTI volumes and stacks of slice files, and turn them to RAS+."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt2axcodes,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from upfield.sharding.errors import VolumeError

UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    ValueError,
    OSError,
    # A damaged header can ask for more voxels than a machine can count or hold.
    OverflowError,
    MemoryError,
)


@dataclass(frozen=True)
class Volume:
    """A volume in RAS+ order: axis 0 runs to the right, 1 to the front, 2 to the top."""

    voxels: NDArray[np.float32]
    """`(I, J, K)` in scanner units."""
    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm."""
    axcodes: tuple[str, str, str] = ("R", "A", "S")
    """Where the axes of the file that it came from point."""

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis, `(3,)`, in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_volume(path: Path) -> Volume:
    """Read a NIfTI (or MGH) volume and turn it to RAS+.

    Args:
        path: file holding one 3-D volume; trailing dimensions of size 1 are dropped.

    Returns:
        Voxels `(I, J, K)` float32 in scanner units (slope and intercept applied) and their affine.

    Raises:
        VolumeError: missing, unreadable, not one 3-D real volume, not finite, constant, or no usable affine.
    """
    voxels, affine = _read(path)
    if voxels.ndim != 3:
        raise VolumeError(
            f"{path}: expected 3 dimensions, found {voxels.ndim} (shape {voxels.shape}); extract one volume first"
        )
    volume = to_ras(voxels, affine, str(path))
    refuse_empty(volume.voxels, str(path))
    return volume


def read_stack(paths: Sequence[Path]) -> Volume:
    """Read one slice per file, stack them in the order given, and turn the result to RAS+.

    A slice file is 2-D, or 3-D with one axis of a single voxel; the volume grows along that axis. Where the slices'
    affines have different origins, the distance between the first and the last gives the spacing along the stack.

    Args:
        paths: files in slice order, at least two.

    Returns:
        Voxels `(I, J, K)` float32 in scanner units and their affine.

    Raises:
        VolumeError: a slice is unreadable or of another shape than the first, or the stack is not finite or constant.
    """
    where = f"{paths[0]} .. {paths[-1].name}"
    if len(paths) < 2:
        raise VolumeError(f"{paths[0]}: expected at least 2 slices, found 1; use a pattern without {{slice}}")
    slices = [_read_slice(path) for path in paths]
    first, affine, axis = slices[0]
    for path, (voxels, _, _) in zip(paths, slices, strict=True):
        if voxels.shape != first.shape:
            raise VolumeError(
                f"{path}: expected a slice of shape {first.shape} like {paths[0].name}, found {voxels.shape}"
            )
    affine = affine.copy()
    travelled_mm = slices[-1][1][:3, 3] - affine[:3, 3]
    if np.linalg.norm(travelled_mm) > 1e-3:
        affine[:3, axis] = travelled_mm / (len(slices) - 1)
    volume = to_ras(np.stack([voxels for voxels, _, _ in slices], axis=axis), affine, where)
    refuse_empty(volume.voxels, where)
    return volume


def to_ras(voxels: NDArray[np.float32], affine: NDArray[np.float64], where: str) -> Volume:
    """Permute and flip axes so that they run right, anterior, superior as nearly as the affine allows.

    Args:
        voxels: `(I, J, K)` in any order.
        affine: `(4, 4)`, voxel index -> world mm.
        where: what to call the volume in errors.

    Raises:
        VolumeError: the affine is not finite or maps two axes onto one.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{where}: expected an invertible affine, found {affine.tolist()}; mend the header")
    orientation = io_orientation(affine)
    if np.isnan(orientation).any():
        raise VolumeError(f"{where}: expected three distinct axes, found {affine.tolist()}; mend the header")
    turned = np.ascontiguousarray(apply_orientation(voxels, orientation))
    first, second, third = ornt2axcodes(orientation)
    return Volume(turned, affine @ inv_ornt_aff(orientation, voxels.shape), (first, second, third))


def from_ras(volume: Volume) -> Volume:
    """Turn a RAS+ volume back to the axis order of the file that it came from; the place in the world stays."""
    orientation = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(volume.axcodes))
    voxels = np.ascontiguousarray(apply_orientation(volume.voxels, orientation))
    return Volume(voxels, volume.affine @ inv_ornt_aff(orientation, volume.voxels.shape), volume.axcodes)


def refuse_empty(voxels: NDArray[np.float32], where: str) -> None:
    """Raise VolumeError where `voxels` `(I, J, K)` hold nothing, NaN or infinity, or a single value throughout."""
    if voxels.size == 0:
        raise VolumeError(f"{where}: expected voxels, found none (shape {voxels.shape}); leave it out")
    lowest, highest = voxels.min(), voxels.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise VolumeError(
            f"{where}: expected finite voxels, found {bad} that are NaN or infinite; mend or leave it out"
        )
    if lowest == highest:
        raise VolumeError(f"{where}: expected an image, found the value {lowest:g} in every voxel; leave it out")


def _read_slice(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64], int]:
    """Give one slice `(I, J)`, its affine, and the axis that it is perpendicular to."""
    voxels, affine = _read(path)
    if voxels.ndim == 2:
        return voxels, affine, 2
    single = [axis for axis, size in enumerate(voxels.shape) if size == 1]
    if voxels.ndim != 3 or not single:
        raise VolumeError(f"{path}: expected one slice, found shape {voxels.shape}; use a pattern without {{slice}}")
    return voxels.squeeze(single[-1]), affine, single[-1]


def _read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Give a file's voxels, float32 with slope and intercept applied, without trailing dimensions of size 1."""
    if not path.is_file():
        raise VolumeError(f"{path}: expected a NIfTI file, found none; check the path")
    try:
        image = nib.load(path)  # pyright: ignore[reportPrivateImportUsage]
        if not isinstance(image, SpatialImage):
            raise VolumeError(f"{path}: expected a volume, found {type(image).__name__}; convert it first")
        kind = image.get_data_dtype()
        if kind.kind not in "iufb":
            raise VolumeError(f"{path}: expected real voxels, found type {kind}; convert it first")
        # Float32 from the start: get_fdata's float64 would take twice the memory.
        voxels = image.get_fdata(dtype=np.float32, caching="unchanged")
    except VolumeError:
        raise
    except UNREADABLE as error:
        raise VolumeError(f"{path}: expected a readable NIfTI file, found {type(error).__name__}: {error}") from error
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if image.affine is None:
        raise VolumeError(f"{path}: expected an affine, found none; mend the header")
    return voxels, np.asarray(image.affine, dtype=np.float64)
