"""Read volumes and stacks of slice files, and reorient them to RAS+."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt2axcodes,
    ornt_transform,
)
from numpy.typing import NDArray

from upfield.common.errors import VolumeError
from upfield.imaging.affine import spacing_of
from upfield.imaging.compressed_files import Trace, changed, is_compressed, read_content, trace
from upfield.imaging.formats.file_header import VoxelLayout
from upfield.imaging.formats.voxel_values import decode_voxels, to_float32
from upfield.imaging.header import UNREADABLE, quiet_nibabel, unreadable
from upfield.imaging.volume_header import VolumeHeader, read_stack_header, read_volume_header


@dataclass(frozen=True)
class Volume:
    """A volume in RAS+ order: axis 0 points to the right, axis 1 to the front, axis 2 to the top.

    Examples:
        >>> import upfield
        >>> scan = upfield.read_scan("scan.nii.gz")
        >>> scan.voxels.shape, scan.affine.shape, scan.axcodes
        ((24, 28, 10), (4, 4), ('P', 'S', 'R'))
        >>> scan
        Volume(24 x 28 x 10 voxels of 1.6 x 1.6 x 5 mm)
    """

    voxels: NDArray[np.float32]
    """`(I, J, K)` in scanner units, less an offset if float32 could not tell the values apart otherwise."""
    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm."""
    axcodes: tuple[str, str, str] = ("R", "A", "S")
    """Axis codes of the file that the volume was read from."""

    def __repr__(self) -> str:
        """Return the sizes of the volume and of its voxels."""
        shape, spacing = (" x ".join(f"{size:.4g}" for size in sizes) for sizes in (self.voxels.shape, self.spacing_mm))
        return f"Volume({shape} voxels of {spacing} mm)"

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis, `(3,)`, in mm."""
        return spacing_of(self.affine)


def read_volume(path: Path, orientation: str | None = None) -> Volume:
    """Read a volume and reorient it to RAS+.

    Args:
        path: `.nii`, `.nii.gz`, `.mgh` or `.mgz` holding one 3-D volume; trailing dimensions of size 1 are dropped.
        orientation: axis codes, such as `RAS`, to assume if the file does not state the directions of its axes. By
            default, assume what the format's own programs assume.

    Returns:
        Voxels `(I, J, K)` float32 in scanner units (slope and intercept applied) and their affine.

    Raises:
        VolumeError: the file is missing or unreadable, is not one 3-D real volume, is not finite, is constant, or has
            no usable affine.
    """
    return load_volume([path], read_volume_header(path, orientation))


def read_stack(paths: Sequence[Path], orientation: str | None = None) -> Volume:
    """Read one slice per file, stack the slices in the given order, and reorient the volume to RAS+.

    A slice file is 2-D, or 3-D with a single voxel along one axis. Slices are stacked along that axis. If their affines
    have different origins, the distance between the first and the last origin gives the spacing along the stack.

    Args:
        paths: files in slice order, at least two.
        orientation: axis codes of the stack, to assume if its files do not state the directions of their axes.

    Returns:
        Voxels `(I, J, K)` float32 in scanner units and their affine.

    Raises:
        VolumeError: a slice is unreadable or has a different shape from the first, or the stack is not finite, is
            constant, or has no usable affine.
    """
    return load_volume(paths, read_stack_header(paths, orientation))


def load_volume(paths: Sequence[Path], header: VolumeHeader, traces: Sequence[Trace] = ()) -> Volume:
    """Read the voxels of a volume whose header has already been read, and reorient the volume to RAS+.

    Each NIfTI or MGH file is opened once, and its header is not parsed again.

    Args:
        paths: the volume's one file, or its slices in order.
        header: header of the volume.
        traces: traces of the files when the header was read. Without them, files that have changed are not noticed.

    Returns:
        Voxels `(I, J, K)` float32 in scanner units and their affine.

    Raises:
        VolumeError: a file is unreadable or has changed, or the volume is not finite, is constant, or has no usable
            affine.
    """
    where = str(paths[0]) if header.stacked_axis is None else f"{paths[0]} .. {paths[-1].name}"
    files = zip(paths, header.layouts, traces or [None] * len(paths), strict=True)
    if (axis := header.stacked_axis) is None:
        (voxels,) = (_read_voxels(*file) for file in files)
    else:
        plane = (*header.shape[:axis], *header.shape[axis + 1 :])
        voxels = np.stack([_read_voxels(*file).reshape(plane) for file in files], axis=axis)
    return to_ras(voxels, header.affine, where)


def to_ras(voxels: NDArray[np.floating], affine: NDArray[np.float64], where: str) -> Volume:
    """Permute and flip axes so that they point right, anterior and superior as closely as the affine allows.

    Args:
        voxels: `(I, J, K)` in any order, as they were decoded.
        affine: `(4, 4)`, voxel index -> world mm.
        where: name of the volume in error messages.

    Raises:
        VolumeError: the affine is not finite or maps two axes onto one, or the voxels are not finite or are constant.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(where, f"the affine cannot be inverted: {affine.tolist()}. Fix the header.")
    orientation = io_orientation(affine)
    if np.isnan(orientation).any():
        raise VolumeError(where, f"the affine maps two axes onto one: {affine.tolist()}. Fix the header.")
    reoriented = np.ascontiguousarray(apply_orientation(to_float32(voxels), orientation))
    _refuse_empty(reoriented, where)
    first, second, third = ornt2axcodes(orientation)
    return Volume(reoriented, affine @ inv_ornt_aff(orientation, voxels.shape), (first, second, third))


def from_ras(volume: Volume) -> Volume:
    """Return a RAS+ volume in the axis order of the file that it was read from. Its world position stays the same."""
    orientation = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(volume.axcodes))
    voxels = np.ascontiguousarray(apply_orientation(volume.voxels, orientation))
    return Volume(voxels, volume.affine @ inv_ornt_aff(orientation, volume.voxels.shape), volume.axcodes)


def _refuse_empty(voxels: NDArray[np.float32], where: str) -> None:
    """Raise VolumeError if `voxels` `(I, J, K)` is empty, contains NaN or infinity, or is constant."""
    if voxels.size == 0:
        raise VolumeError(where, f"the image holds no voxels (shape {voxels.shape}). Leave it out.")
    lowest, highest = voxels.min(), voxels.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise VolumeError(
            where, f"voxels must be finite, but {bad} are NaN or infinite. Replace them or leave the file out."
        )
    if lowest == highest:
        raise VolumeError(where, f"every voxel has the value {lowest:zg}. Leave the file out.")


def _read_voxels(path: Path, layout: VoxelLayout, expected: Trace | None) -> NDArray[np.floating]:
    """Read a file's voxels in the layout's shape, with slope and intercept applied; `to_float32` converts them."""
    try:
        if layout.voxel_file is not None:
            return decode_voxels(layout.voxel_file, layout)
        if layout.end_bytes is None:
            with quiet_nibabel():
                image: Any = layout.kind.from_filename(path)
                return np.asanyarray(image.dataobj, dtype=np.float64).reshape(layout.shape)
        if is_compressed(path):
            return decode_voxels(BytesIO(read_content(path, layout.end_bytes, expected)), layout)
        if expected is not None and trace(path) != expected:
            raise changed(path)
        return decode_voxels(path, layout)
    except VolumeError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, error) from error
