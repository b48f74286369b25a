"""One scan on its way through a model: to RAS+ and an isotropic grid, and back to the scan's own axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import InputError, VolumeError
from upfield.export.modelfile.card import ModelCard
from upfield.export.scans.restoration import ScanRestorer, restore_volume
from upfield.export.scans.scan_claim import ScanClaim, plausibility_doubts
from upfield.imaging.air import Air, estimate_air, raise_to_air
from upfield.imaging.extent import AXES, size_problem
from upfield.imaging.formats.file_header import Header
from upfield.imaging.formats.header_findings import ENHANCED, UNITS, affine_findings, header_findings
from upfield.imaging.nifti_writer import write_file
from upfield.imaging.normalisation import NORMALISATION, intensity_range, scale_in_place
from upfield.imaging.placement import Placement, SharedSpace, placement_of, share_space
from upfield.imaging.plausibility.resolution import fine_doubt, sampling_doubt
from upfield.imaging.regrid import Grid, overlaps, regrid
from upfield.imaging.resample import box_centre, resample_box
from upfield.imaging.volume import Volume, from_ras
from upfield.imaging.volume_file import read_volume_and_header
from upfield.sharding.building.field_resampler import FieldResampler, to_voxel

SPACING_MM = 1.0
# A voxel may be tissue if it is brighter than air by this share of the threshold of the head, and by more than noise.
FAINT_SHARE, FAINT_SPREADS = 0.25, 6.0
# A plane holds tissue if more than this share of its voxels may be tissue.
LEAST_TISSUE = 1e-3
# Heads are at least this share of the training data's box long along every axis.
LEAST_SHOWN = 0.5

# First and last voxel, exclusive, along each of three axes; they may lie outside of the array.
Window = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class ModelInput:
    """A scan as input for a model: interpolated to 1 mm, with normalised intensities."""

    low: NDArray[np.float32]
    """`(X, Y, Z)` in [0, 1], RAS+, 1 mm isotropic: the part of the scan that the model restores, see `head_window`."""
    start: tuple[int, ...]
    """Voxel of the field of view at which `low` starts; negative where `low` is padded with air."""
    shape: tuple[int, ...]
    """Voxels of the scan's field of view at 1 mm along each axis, RAS+."""
    affine: NDArray[np.float64]
    """`(4, 4)`: voxel index of the field of view -> world mm."""
    axcodes: tuple[str, str, str]
    """Directions of the axes in the scan's file, in nibabel's notation."""
    placement: Placement
    """Position and orientation from the header of the scan's file."""
    notes: tuple[str, ...] = ()
    """Warnings about doubtful values in the scan's header and voxels, one sentence each."""


@dataclass(frozen=True)
class OutputLayout:
    """The grid and axis order in which an enhanced scan is written."""

    keep_ras: bool = False
    """Whether the axes are right, anterior, superior, instead of in the scan's own order."""
    like: Grid | None = None
    """Another image's grid to write on; None writes 1 mm voxels over the scan's field of view."""


DEFAULT_LAYOUT = OutputLayout()


def prepare(path: Path, card: ModelCard, where: str, claim: ScanClaim | None = None) -> ModelInput:
    """Read a scan, interpolate it to 1 mm, and normalise its intensities for a model.

    Args:
        path: NIfTI or MGH file in any orientation and on any grid.
        card: metadata of the model.
        where: name of the scan in error messages.
        claim: what the scan is compared with; None compares nothing.

    Raises:
        VolumeError: the file is not one 3-D real volume, or is not the size of a head.
        InputError: this version does not know the model's normalisation.
    """
    if card.normalisation != NORMALISATION:
        raise InputError(
            f"{where}: expected a model with normalisation {NORMALISATION!r}, found {card.normalisation!r}. Use the "
            "version of upfield that exported the model."
        )
    try:
        scan, header = read_volume_and_header(path)
    except VolumeError as error:
        raise VolumeError(where, error.problem) from error
    return prepare_volume(scan, header, card, where, claim)


def prepare_volume(
    scan: Volume, header: Header, card: ModelCard, where: str, claim: ScanClaim | None = None
) -> ModelInput:
    """Interpolate a scan in memory to 1 mm, and normalise its intensities for a model.

    Args:
        scan: voxels `(I, J, K)` in RAS+.
        header: header of the scan's file.
        card: metadata of the model.
        where: name of the scan in error messages.
        claim: what the scan is compared with; None compares nothing.

    Raises:
        VolumeError: the scan is not the size of a head, or shows a contrast that the model was not trained on.
    """
    implausible = plausibility_doubts(scan, header, claim, card, where) if claim else ()
    placement = placement_of(header)
    air = estimate_air(scan.voxels)
    scan = raise_to_air(scan, air)
    grid = isotropic(scan, where, header.unit)
    resampler = FieldResampler.around(card.geometry, "crop_pad", scan, air)
    window = head_window(grid, air, resampler)
    low = _cut(grid.voxels, window, air.padding)
    scale_in_place(low, *training_range(scan, air, resampler, where))
    sampled = sampling_doubt("the scan", scan.spacing_mm, np.full(3, SPACING_MM), "the grid of the model")
    if claim and fine_doubt(scan.spacing_mm):
        # That a scan is fine along all axes is one of the implausible facts.
        sampled = None
    found = (sampled, part_doubt(scan, card), air.doubt)
    notes = header_doubts(header) + tuple(doubt for doubt in found if doubt) + implausible
    start = tuple(begin for begin, _ in window)
    return ModelInput(low, start, grid.voxels.shape, grid.affine, scan.axcodes, placement, notes)


def training_range(scan: Volume, air: Air, resampler: FieldResampler, where: str) -> tuple[float, float]:
    """Return the intensities of a scan that become 0 and 1: those that would become 0 and 1 in a shard set.

    They are percentiles 1 and 99 of the box that the model was trained with, placed around the head and filled up with
    air as in a shard set. So they do not depend on the margins of the scan.

    Args:
        scan: voxels `(I, J, K)` in RAS+, without outliers below air.
        air: its background.
        resampler: the box, around the head.
        where: name of the scan in error messages.

    Raises:
        VolumeError: the two percentiles are equal, or nothing but air lies between them.
    """
    box = resampler.low_to_high(resampler.low_from_file(scan, air).voxels)
    remedy = "Check that the scan shows a head."
    low, high = intensity_range(box, where, remedy)
    if air.doubt is None and high < air.threshold:
        problem = "less than 1% of the box that the model was trained with is brighter than air"
        raise VolumeError(where, f"{problem}. {remedy}")
    return low, high


def head_window(grid: Volume, air: Air, resampler: FieldResampler) -> Window:
    """Choose the part of a field of view that the model restores.

    A restored voxel depends on its whole slice. So the model gets slices like those that it was trained with: the box
    of the training data around the head, padded with air where it is larger than the field of view. The box grows where
    it would cut off tissue. Empty margins therefore change nothing. Slices without the head are left out. If air cannot
    be told from the head, the window is the field of view.

    Args:
        grid: voxels `(X, Y, Z)` in RAS+ at 1 mm, in the unit of the scan.
        air: background of the scan.
        resampler: the box, around the head.

    Returns:
        First and last voxel, exclusive, along each axis of `grid`; they may lie outside of it.
    """
    shape = grid.voxels.shape
    if air.doubt is not None:
        return [(0, size) for size in shape]
    assert resampler.centre_mm is not None
    box_mm = resampler.geometry.high_size_mm
    centre = to_voxel(grid.affine, resampler.centre_mm)
    # Tissue can be much darker than the threshold of the head, which the box is centred on.
    tissue = grid.voxels > air.level + max(FAINT_SHARE * (air.threshold - air.level), FAINT_SPREADS * air.spread)
    window: list[tuple[int, int]] = []
    for axis, size in enumerate(shape):
        count = round(box_mm[axis] / SPACING_MM)
        begin = round(float(centre[axis]) - (count - 1) / 2)
        area = np.count_nonzero(tissue, axis=tuple({0, 1, 2} - {axis}))
        planes = np.flatnonzero(area > LEAST_TISSUE * tissue.size / size)
        first, last = (int(planes[0]), int(planes[-1])) if len(planes) else (begin, begin)
        begin, end = min(begin, first), max(begin + count, last + 1)
        window.append((max(begin, 0), min(end, size)) if axis == 0 else (begin, end))
    return window


def _cut(voxels: NDArray[np.float32], window: Window, padding: float) -> NDArray[np.float32]:
    """Cut a window out of `(X, Y, Z)`; the result is `padding` outside `voxels`."""
    inside = tuple(slice(max(begin, 0), max(end, 0)) for begin, end in window)
    beyond = [
        (max(-begin, 0), max(end - max(size, begin), 0))
        for (begin, end), size in zip(window, voxels.shape, strict=True)
    ]
    return np.pad(voxels[inside], beyond, constant_values=padding)


def header_doubts(header: Header) -> tuple[str, ...]:
    """Return a sentence for each doubtful value in the header, to be recorded beside the enhanced scan."""
    return tuple(finding.note for finding in header_findings(header) + affine_findings(header.affine))


def part_doubt(scan: Volume, card: ModelCard) -> str | None:
    """Return a sentence if a RAS+ scan `(I, J, K)` shows much less of the head than the model's training data."""
    size_mm = np.array(scan.voxels.shape) * scan.spacing_mm
    box_mm = np.array(card.geometry.high_size_mm)
    axis = int(np.argmin(size_mm / box_mm))
    if size_mm[axis] >= LEAST_SHOWN * box_mm[axis]:
        return None
    return (
        f"the field of view is only {size_mm[axis]:.3g} mm long {AXES[axis]}, but the model was trained on "
        f"{box_mm[axis]:.3g} mm, so the intensities of the result may be wrong"
    )


def expect_on_grid(model_input: ModelInput, grid: Grid, where: str) -> str | None:
    """Check that a scan can be written on another image's grid.

    Args:
        model_input: the scan.
        grid: the other image's grid.
        where: name of the scan in error messages.

    Returns:
        A sentence if nobody can know whether the two are in one place, otherwise None.

    Raises:
        VolumeError: the header does not state the position of the scan, or states another space, or the scan
            does not overlap the grid.
    """
    if not model_input.placement.is_placed:
        raise VolumeError(
            where,
            f"the header does not state the position of the scan, so it cannot be written on the grid of {grid.name}. "
            "Leave out --like.",
        )
    shared = _shared_space(model_input, grid)
    if shared.is_apart:
        raise VolumeError(where, f"{shared.doubt}. Register the two images, or leave out --like.")
    if not overlaps(model_input.shape, _affine_beside(model_input, grid), grid):
        raise VolumeError(
            where,
            f"the field of view does not overlap that of {grid.name}. Register the two images, or leave out --like.",
        )
    return shared.note


def space_name(model_input: ModelInput, layout: OutputLayout) -> str:
    """Return the name of the space in which an enhanced scan was placed."""
    return model_input.placement.space if layout.like is None else _shared_space(model_input, layout.like).name


def _shared_space(model_input: ModelInput, grid: Grid) -> SharedSpace:
    return share_space(model_input.placement, grid.placement, ("the scan", grid.name))


def _affine_beside(model_input: ModelInput, grid: Grid) -> NDArray[np.float64]:
    """Return the affine `(4, 4)` of a scan's field of view in another image's world, through the shared space."""
    scan, other = _shared_space(model_input, grid).affines
    in_shared = scan @ np.linalg.inv(model_input.placement.affine) @ model_input.affine
    return grid.placement.affine @ np.linalg.inv(other) @ in_shared


def finish(model_input: ModelInput, restored: NDArray[np.float32], layout: OutputLayout = DEFAULT_LAYOUT) -> Volume:
    """Bring a restored volume to the grid and axis order of the output.

    Args:
        model_input: the scan.
        restored: `(X, Y, Z)` in [0, 1], the model's output for `model_input.low`.
        layout: grid and axis order; by default 1 mm isotropic in the scan's own axis order.

    Returns:
        Voxels `(I, J, K)` in [0, 1], and the affine that puts them where the scan was.
    """
    # The opposite of the cut by which `low` was made.
    window = [(-begin, size - begin) for begin, size in zip(model_input.start, model_input.shape, strict=True)]
    whole = _cut(restored, window, 0)
    if layout.like is not None:
        affine = _affine_beside(model_input, layout.like)
        return Volume(np.clip(regrid(whole, affine, layout.like), 0, 1), layout.like.placement.affine)
    volume = Volume(whole, model_input.affine, model_input.axcodes)
    return volume if layout.keep_ras else from_ras(volume)


def write_enhanced(
    model_input: ModelInput, restored: NDArray[np.float32], path: Path, layout: OutputLayout = DEFAULT_LAYOUT
) -> Volume:
    """Write an enhanced scan with header fields of the original; equal arguments write equal bytes.

    Args:
        model_input: the scan.
        restored: `(X, Y, Z)` in [0, 1], the model's output for `model_input.low`.
        path: a `.nii` or `.nii.gz` file; its name is not stored in the file.
        layout: grid and axis order.

    Returns:
        The written voxels `(I, J, K)` in [0, 1] and their affine.
    """
    volume = finish(model_input, restored, layout)
    placement = model_input.placement if layout.like is None else layout.like.placement
    write_file(path, volume, placement, mark_as_enhanced(model_input.placement.descrip))
    return volume


def mark_as_enhanced(descrip: bytes) -> bytes:
    """Return a description that marks a scan as enhanced, followed by the description of the source scan."""
    return b"; ".join(part for part in (ENHANCED, descrip) if part)


def enhance_volume(
    path: Path, restorer: ScanRestorer, batch_size: int, advance: Callable[[int], None] = lambda _: None
) -> Volume:
    """Enhance one scan in memory.

    Args:
        path: NIfTI or MGH file in any orientation and on any grid.
        restorer: the model.
        batch_size: slices restored at once.
        advance: called with the number of slices after each batch.

    Returns:
        Voxels `(I, J, K)` in [0, 1] in the scan's own axis order, and the affine that puts them where the scan was.

    Raises:
        VolumeError: the file is not one 3-D real volume, or is not the size of a head.
    """
    model_input = prepare(path, restorer.card, str(path))
    return finish(model_input, restore_volume(model_input.low, restorer, batch_size, advance))


def isotropic(scan: Volume, where: str, unit: str = "mm") -> Volume:
    """Interpolate a RAS+ volume to 1 mm voxels over the same field of view.

    The field of view is rounded to whole voxels, and its centre does not move.

    Args:
        scan: voxels `(I, J, K)`.
        where: name of the scan in error messages.
        unit: unit of length that the header states.

    Returns:
        Voxels `(X, Y, Z)` and their affine.

    Raises:
        VolumeError: the field of view is smaller than the network's smallest slice, or larger than a head.
    """
    extent_mm = np.array(scan.voxels.shape) * scan.spacing_mm
    if problem := size_problem(extent_mm):
        remedy = "Fix the spacing in the header, or leave the scan out."
        if unit != "mm":
            remedy = f"The header gives lengths in {UNITS[unit]}; convert them to mm."
        raise VolumeError(where, f"{problem}. {remedy}")
    count_i, count_j, count_k = (max(round(float(mm) / SPACING_MM), 1) for mm in extent_mm)
    shape = (count_i, count_j, count_k)
    centre_vox, ratio = box_centre(scan.voxels.shape), SPACING_MM / scan.spacing_mm
    voxels = resample_box(scan.voxels, scan.spacing_mm, centre_vox, shape, np.full(3, SPACING_MM))
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = centre_vox - ratio * box_centre(shape)
    return Volume(voxels, scan.affine @ step, scan.axcodes)
