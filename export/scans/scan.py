"""One scan through a model: RAS+, an isotropic grid over the same field of view, slices, back to the scan's axes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import InputError, VolumeError
from upfield.export.scans.restoration import Restorer, restore_volume
from upfield.imaging.header import NIFTI_FALLBACK, Header, angles_deg, read_header
from upfield.imaging.nifti_writer import MARK, marked, write_file
from upfield.imaging.normalisation import NORMALISATION, normalise
from upfield.imaging.placement import Placement, placement_of
from upfield.imaging.regrid import Grid, overlaps, regrid
from upfield.imaging.resample import box_centre, resample_box
from upfield.imaging.volume import Volume, from_ras, read_volume

SPACING_MM = 1.0
MIN_EXTENT_MM, MAX_EXTENT_MM = 9.0, 600.0
SHEAR_DEG = FORMS_DIFFER_DEG = 1.0
UNITS = {"m": "metres", "um": "micrometres"}


@dataclass(frozen=True)
class Prepared:
    """A scan as a model takes it."""

    low: NDArray[np.float32]
    """`(X, Y, Z)` in [0, 1], RAS+, 1 mm isotropic over the scan's field of view."""
    affine: NDArray[np.float64]
    """`(4, 4)`: voxel index of `low` -> world mm."""
    axcodes: tuple[str, str, str]
    """The scan's own axes, as nibabel names them."""
    placement: Placement
    """Where its file says that it lies."""
    notes: tuple[str, ...] = ()
    """What is doubtful about the scan, in words."""


@dataclass(frozen=True)
class Layout:
    """Which voxels an enhanced scan is written with."""

    keep_ras: bool = False
    """Whether axes run right, anterior, superior, instead of as the scan's own do."""
    like: Grid | None = None
    """Another image's grid, if it is to be that."""


OWN = Layout()


def prepare(path: Path, normalisation: str, where: str) -> Prepared:
    """Read a scan and bring it to the grid and the intensities that a model takes.

    Args:
        path: NIfTI or MGH file in any orientation and on any grid.
        normalisation: the model's.
        where: how messages name the scan.

    Raises:
        VolumeError: the file is not one 3-D real volume, or not of a head's size.
        InputError: this version cannot bring intensities to [0, 1] in the model's way.
    """
    if normalisation != NORMALISATION:
        raise InputError(
            f"{where}: expected a model of normalisation {NORMALISATION!r}, found {normalisation!r}; use the version "
            "of upfield that exported it"
        )
    try:
        header = read_header(path)
        scan = read_volume(path)
    except VolumeError as error:
        raise VolumeError(where, error.problem) from error
    return prepare_volume(scan, header, where)


def prepare_volume(scan: Volume, header: Header, where: str) -> Prepared:
    """Bring a scan that was read to the grid and the intensities that a model takes.

    Args:
        scan: voxels `(I, J, K)` in RAS+.
        header: of its file.
        where: how messages name the scan.

    Raises:
        VolumeError: the scan is not of a head's size.
    """
    placement = placement_of(header)
    grid = isotropic(scan, where, header.unit)
    return Prepared(normalise(grid.voxels, where), grid.affine, scan.axcodes, placement, doubts(header, placement))


def doubts(header: Header, placement: Placement) -> tuple[str, ...]:
    """Say what about a scan should be known to who looks at what is made of it."""
    found: list[str] = []
    if not header.is_oriented:
        found.append(
            f"the header does not say where the axes point; {NIFTI_FALLBACK} or what its format assumes is taken, "
            "and left and right may be exchanged"
        )
    axes = header.affine[:3, :3]
    skew = float(np.abs(angles_deg(axes, np.roll(axes, 1, axis=1)) - 90).max())
    if skew > SHEAR_DEG:
        found.append(f"the axes are {skew:.0f} degrees off right angles (sheared), and what is made of them as well")
    same_space = placement.sform_code == placement.qform_code
    if same_space and not header.forms_differ_deg <= FORMS_DIFFER_DEG:
        found.append(f"sform and qform differ by {header.forms_differ_deg:.0f} degrees; the sform is taken")
    if placement.descrip.startswith(MARK):
        found.append("its description says that it has been enhanced already, and no model has learnt from such scans")
    if header.unit != "mm":
        found.append(f"the header gives lengths in {UNITS[header.unit]}; they are taken as mm")
    return tuple(found)


def expect_on_grid(prepared: Prepared, grid: Grid, where: str) -> None:
    """Make sure that a scan can be brought to another image's grid.

    Raises:
        VolumeError: it does not say where it lies, or lies elsewhere.
    """
    if not prepared.placement.is_placed:
        raise VolumeError(
            where,
            f"expected a header that says where the scan lies, so that it can be brought to the grid of {grid.name}, "
            "found none; leave out --like",
        )
    if not overlaps(prepared.low.shape, prepared.affine, grid):
        raise VolumeError(
            where,
            f"expected the field of view to overlap that of {grid.name}, found it elsewhere in the world; register "
            "the two first, or leave out --like",
        )


def finish(prepared: Prepared, restored: NDArray[np.float32], layout: Layout = OWN) -> Volume:
    """Give what a model made of `prepared.low`, `(X, Y, Z)`, on the voxels that are wanted.

    Args:
        prepared: the scan.
        restored: `(X, Y, Z)` in [0, 1].
        layout: which voxels; by default 1 mm isotropic in the scan's own axis order.

    Returns:
        Voxels `(I, J, K)` in [0, 1], and the affine that puts them where the scan was.
    """
    if layout.like is not None:
        return Volume(np.clip(regrid(restored, prepared.affine, layout.like), 0, 1), layout.like.placement.affine)
    volume = Volume(restored, prepared.affine, prepared.axcodes)
    return volume if layout.keep_ras else from_ras(volume)


def write_enhanced(prepared: Prepared, restored: NDArray[np.float32], path: Path, layout: Layout = OWN) -> Volume:
    """Write what a model made of a scan, with the scan's header fields; the same bytes for the same arguments.

    Args:
        prepared: the scan.
        restored: `(X, Y, Z)` in [0, 1], what the model made of `prepared.low`.
        path: a `.nii` or `.nii.gz` file; its name does not get into it.
        layout: which voxels.

    Returns:
        What was written: voxels `(I, J, K)` and their affine.
    """
    volume = finish(prepared, restored, layout)
    placement = prepared.placement if layout.like is None else layout.like.placement
    write_file(path, volume, placement, marked(prepared.placement.descrip))
    return volume


def enhance_volume(
    path: Path, restorer: Restorer, batch_size: int, advance: Callable[[int], None] = lambda _: None
) -> Volume:
    """Enhance one scan.

    Args:
        path: NIfTI file in any orientation and on any grid.
        restorer: the model.
        batch_size: slices restored at once.
        advance: called with the number of slices after each batch.

    Returns:
        Voxels `(I, J, K)` in [0, 1] in the scan's own axis order, and the affine that puts them where the scan was.

    Raises:
        VolumeError: the file is not one 3-D real volume, or not of a head's size.
    """
    prepared = prepare(path, restorer.normalisation, str(path))
    return finish(prepared, restore_volume(prepared.low, restorer, batch_size, advance))


def isotropic(scan: Volume, where: str, unit: str = "mm") -> Volume:
    """Interpolate a RAS+ volume to 1 mm voxels over the same field of view, to the nearest voxel, centre on centre.

    Args:
        scan: voxels `(I, J, K)`.
        where: what to call it in errors.
        unit: what its header gives lengths in.

    Raises:
        VolumeError: the field of view is smaller than the network's least slice, or no head's.
    """
    extent_mm = np.array(scan.voxels.shape) * scan.spacing_mm
    found = f"found {' x '.join(f'{mm:.4g}' for mm in extent_mm)} mm"
    mend = "this is no head" if unit == "mm" else f"its header gives lengths in {UNITS[unit]}, convert it to mm"
    if extent_mm.min() < MIN_EXTENT_MM:
        raise VolumeError(
            where,
            f"expected a field of view of at least {MIN_EXTENT_MM:g} mm along every axis, {found}; {mend}",
        )
    if extent_mm.max() > MAX_EXTENT_MM:
        mend = "mend the spacing in the header" if unit == "mm" else mend
        raise VolumeError(where, f"expected a field of view of at most {MAX_EXTENT_MM:g} mm, {found}; {mend}")
    count_i, count_j, count_k = (max(round(float(mm) / SPACING_MM), 1) for mm in extent_mm)
    shape = (count_i, count_j, count_k)
    centre_vox, ratio = box_centre(scan.voxels.shape), SPACING_MM / scan.spacing_mm
    voxels = resample_box(scan.voxels, scan.spacing_mm, centre_vox, shape, np.full(3, SPACING_MM))
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = centre_vox - ratio * box_centre(shape)
    return Volume(voxels, scan.affine @ step, scan.axcodes)
