"""Compare the resolution that a scan seems to have with the resolution that is expected of it."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.volume import Volume

AXES = ("left-right", "posterior-anterior", "inferior-superior")
# A high field of 1.2 mm slices is ordinary for a grid of 1 mm, one of 1.5 mm is not.
MAX_COARSER = 1.4
# Low fields have at least one thick axis; 1.5 or 1.6 mm in all directions is what several of them are combined to.
FINE_MM = 1.3
# Bands of spatial frequency, in cycles per grid voxel. Detail that a grid of twice the voxel size cannot hold lies in
# the upper band.
LOWER_BAND, UPPER_BAND = (0.15, 0.22), (0.3, 0.45)
# Power in the upper band relative to the lower band. Measured: 0.1 or more in scans and phantoms, 0.015 in a smooth
# average of 27 scans, and at most 0.004 after cubic or sinc interpolation from twice the voxel size.
LEAST_UPPER_POWER = 0.008
# Interpolation to half the voxel size computes every second voxel in another way, so the mean size of differences of
# neighbours changes from plane to plane. Amplitude of this change, relative to the mean: at most 0.07 in scans and
# phantoms, 0.3 or more after linear or cubic interpolation.
MAX_ALTERNATION, LEAST_FREQUENCY = 0.2, 0.45
# Fewer voxels do not separate the bands.
LEAST_VOXELS = 48
# Nearest-neighbour interpolation to half the voxel size repeats every second plane.
MAX_REPEATED_PLANES = 0.2


def coarse_doubt(step: NDArray[np.float64], spacing_mm: NDArray[np.float64]) -> str | None:
    """Return a doubt if a high field has much larger voxels than the high-field grid, otherwise None.

    Args:
        step: `(3,)`, voxels of the file per voxel of the grid, along the axes of RAS+.
        spacing_mm: `(3,)`, voxel size of the file.
    """
    axes = [axis for axis in range(3) if step[axis] * MAX_COARSER < 1]
    if not axes:
        return None
    return (
        f"the voxels are coarser than those of the high-field grid {_names(axes)} "
        f"({_sizes(spacing_mm, axes)}), so the model would learn from an interpolated image; check that this is the "
        "original scan"
    )


def fine_doubt(spacing_mm: NDArray[np.float64]) -> str | None:
    """Return a doubt if a low field is at high resolution along all axes, otherwise None.

    Args:
        spacing_mm: `(3,)`, voxel size in mm.
    """
    if not (spacing_mm <= FINE_MM).all():
        return None
    return (
        f"the voxels are {_sizes(spacing_mm, range(3))}, so this is a high-field scan, an enhanced one, or one that "
        "was interpolated; check that it is an original low-field scan"
    )


def interpolated_doubt(volume: Volume, grid_mm: NDArray[np.float64]) -> str | None:
    """Return a doubt if a high field seems to have been interpolated from larger voxels, otherwise None.

    Args:
        volume: the high field, `(I, J, K)` in RAS+.
        grid_mm: `(3,)`, voxel size of the high-field grid.
    """
    voxels, spacing_mm = volume.voxels, volume.spacing_mm
    scale = np.maximum(grid_mm / spacing_mm, 1)
    # A file much finer than the grid may have been interpolated without a loss to the grid.
    halved = [axis for axis in range(3) if 2 * spacing_mm[axis] > MAX_COARSER * grid_mm[axis]]
    repeated = [axis for axis in halved if _repeated_planes(voxels, axis) > MAX_REPEATED_PLANES]
    smooth = [
        axis
        for axis in range(3)
        if (lines := _central_lines(voxels, axis, LEAST_VOXELS * scale[axis])) is not None
        and (
            _upper_power(lines, scale[axis]) < LEAST_UPPER_POWER
            or (axis in halved and _alternation(lines) > MAX_ALTERNATION)
        )
    ]
    if repeated:
        seen = f"planes are repeated {_names(repeated)}"
    elif smooth:
        detail_mm = 2 * max(max(grid_mm[axis], spacing_mm[axis]) for axis in smooth)
        seen = f"there is no detail finer than about {detail_mm:.2g} mm {_names(smooth)}"
    else:
        return None
    return (
        f"the header states voxels of {_sizes(spacing_mm, range(3))}, but {seen}, as after interpolation from larger "
        "voxels; check that this is the original scan"
    )


def _repeated_planes(voxels: NDArray[np.float32], axis: int) -> float:
    """Return the share of neighbouring planes across an axis that are equal, among planes that are not constant."""
    planes = np.moveaxis(voxels, axis, 0)
    first, second = planes[:-1], planes[1:]
    # Most planes differ in their middle row already.
    row = planes.shape[1] // 2
    candidates = (first[:, row] == second[:, row]).all(axis=-1)
    equal, num_varied = 0, 0
    for number, is_candidate in enumerate(candidates):
        varied = not is_candidate or bool((second[number] != second[number].flat[0]).any())
        num_varied += varied
        equal += bool(is_candidate and varied and np.array_equal(first[number], second[number]))
    return equal / max(num_varied, 1)


def _central_lines(voxels: NDArray[np.float32], axis: int, least_voxels: float) -> NDArray[np.float32] | None:
    """Return `(N, L)` lines along an axis through the middle of `(I, J, K)`; None if they are too short or flat."""
    lines = np.moveaxis(voxels, axis, -1)
    rows, columns, length = lines.shape
    lines = lines[rows // 4 : rows - rows // 4 : 3, columns // 4 : columns - columns // 4 : 3].reshape(-1, length)
    return lines if length >= least_voxels and lines.min() < lines.max() else None


def _upper_power(lines: NDArray[np.float32], scale: float) -> float:
    """Return the power of `(N, L)` lines in the upper band, relative to the lower; `scale` is voxels per grid voxel."""
    length = lines.shape[1]
    tapered = (lines - lines.mean(axis=1, keepdims=True)) * np.hanning(length).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(tapered, axis=1))).mean(axis=0, dtype=np.float64)
    frequency = np.fft.rfftfreq(length) * scale
    lower, upper = (power[(frequency >= first) & (frequency < last)].mean() for first, last in (LOWER_BAND, UPPER_BAND))
    return float(upper / lower) if lower else np.inf


def _alternation(lines: NDArray[np.float32]) -> float:
    """Return how strongly differences of neighbours on `(N, L)` lines alternate between even and odd voxels.

    Second differences alternate if every second voxel lies on one of the larger voxels. Third differences alternate if
    all voxels lie between them.
    """
    margin = lines.shape[1] // 8
    inner = lines[:, margin:-margin]
    amplitudes = []
    for order in (2, 3):
        sizes = np.abs(np.diff(inner, order, axis=1)).mean(axis=0, dtype=np.float64)
        relative = np.log(sizes + 1e-6 * sizes.max() + 1e-30)
        taper = np.hanning(relative.size)
        waves = np.abs(np.fft.rfft((relative - relative.mean()) * taper)) * 2 / taper.sum()
        amplitudes.append(float(waves[np.fft.rfftfreq(relative.size) >= LEAST_FREQUENCY].max()))
    return max(amplitudes)


def _names(axes: Iterable[int]) -> str:
    return " and ".join(AXES[axis] for axis in axes)


def _sizes(spacing_mm: NDArray[np.float64], axes: Iterable[int]) -> str:
    return " x ".join(f"{spacing_mm[axis]:.3g}" for axis in axes) + " mm"
