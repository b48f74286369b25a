"""Compare the resolution that a scan seems to have with the resolution that is expected of it."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.affine import size_text
from upfield.imaging.extent import AXES, Extent
from upfield.imaging.volume import Volume

# Half-millimetre heads on 1 mm are reported, and heads of 2/3 mm are not.
MAX_SAMPLING_STEP = 1.52
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
# A scan with more power in the upper band along all axes is sharp. Measured along the axis with the least power: 0.1 or
# more in four scans at 3 T, 0.06 in an enhanced scan, and at most 0.01 in three scans at 64 mT interpolated to 1 mm.
SHARP_UPPER_POWER = 0.03
# Fewer voxels do not separate the bands.
LEAST_VOXELS = 48
# Nearest-neighbour interpolation to half the voxel size repeats every second plane.
MAX_REPEATED_PLANES = 0.2


def sample_distance(
    extent: Extent, fit: Literal["resize", "crop_pad"], shape: Sequence[int], spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Compute the distance between the samples of a volume on its grid, `(3,)` in mm along the axes of RAS+.

    Args:
        extent: the volume.
        fit: method by which it is resampled to the grid.
        shape: voxels of the grid.
        spacing_mm: spacing of the grid, which counts if `fit` is `crop_pad`.
    """
    if fit == "crop_pad":
        return np.array(spacing_mm)
    return (extent.shape - 1) / (np.array(shape) - 1) * extent.spacing_mm


def sampling_doubt(
    scan: str, spacing_mm: NDArray[np.float64], grid_mm: NDArray[np.float64], grid: str = "the grid"
) -> str | None:
    """Return a doubt if a scan is much finer than the grid on which it is sampled, otherwise None.

    Args:
        scan: name of the scan in the sentence.
        spacing_mm: `(3,)`, voxel sizes of the scan along the axes of RAS+.
        grid_mm: `(3,)`, distance between samples along these axes.
        grid: name of the grid in the sentence.
    """
    axes = _finer_axes(spacing_mm, grid_mm)
    return (
        f"{scan} is finer than {grid} along {axes}, so sampling loses detail and may cause aliasing" if axes else None
    )


def finer_low_doubt(low: Extent, high: Extent) -> str | None:
    """Return a doubt if the low field has smaller voxels than the high field, or is finer along an axis."""
    sizes_mm3 = [float(np.prod(extent.spacing_mm)) for extent in (low, high)]
    if sizes_mm3[0] < sizes_mm3[1]:
        return (
            f"the low field has smaller voxels ({sizes_mm3[0]:.2g} mm3) than the high field ({sizes_mm3[1]:.2g} mm3); "
            "check that the two are not exchanged"
        )
    if not (axes := _finer_axes(low.spacing_mm, high.spacing_mm)):
        return None
    return (
        f"the low field is finer than the high field along {axes}, so the high field has no detail to learn from "
        "there; check that this is the right pair"
    )


def coarse_doubt(spacing_mm: NDArray[np.float64], grid_mm: NDArray[np.float64]) -> str | None:
    """Return a doubt if a high field has much larger voxels than the high-field grid, otherwise None.

    Args:
        spacing_mm: `(3,)`, voxel sizes of the scan along the axes of RAS+.
        grid_mm: `(3,)`, distance between samples along these axes.
    """
    if not (axes := _compared(np.flatnonzero(spacing_mm > MAX_COARSER * grid_mm), spacing_mm, grid_mm)):
        return None
    return (
        f"the voxels are larger than those of the high-field grid along {axes}, so the model would learn from an "
        "interpolated image; check that this is the original scan"
    )


def fine_doubt(spacing_mm: NDArray[np.float64]) -> str | None:
    """Return a doubt if a low field is at high resolution along all axes, otherwise None.

    Args:
        spacing_mm: `(3,)`, voxel size in mm.
    """
    if not (spacing_mm <= FINE_MM).all():
        return None
    return (
        f"voxels of {size_text(spacing_mm)} are unusually small for a low-field scan, so this may be a high-field, "
        "enhanced or interpolated one; check that it is an original low-field scan"
    )


def sharp_doubt(scan: Volume, grid_mm: NDArray[np.float64]) -> str | None:
    """Return a doubt if a scan to be enhanced is at high resolution along all axes, otherwise None.

    Args:
        scan: voxels `(I, J, K)` in RAS+.
        grid_mm: `(3,)`, voxel size of the high-field grid.
    """
    if (doubt := fine_doubt(scan.spacing_mm)) is None:
        return None
    scale = np.maximum(grid_mm / scan.spacing_mm, 1)
    lines = [_central_lines(scan.voxels, axis, LEAST_VOXELS * scale[axis]) for axis in range(3)]
    powers = [_upper_power(own, scale[axis]) for axis, own in enumerate(lines) if own is not None]
    size = size_text(scan.spacing_mm)
    if len(powers) == 3 and min(powers) > SHARP_UPPER_POWER:
        return (
            f"voxels of {size} and sharp edges along all axes are typical of a high-field or an enhanced scan, but the "
            "model was trained on low-field scans, so the result may be worse than the scan"
        )
    if powers and min(powers) < SHARP_UPPER_POWER:
        return (
            f"voxels of {size} are unusually small for a low-field scan, and the scan has little detail of that size, "
            "so it may have been interpolated; use the original scan from the scanner"
        )
    return doubt


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
        seen = f"planes are repeated along {_names(repeated)}"
    elif smooth:
        detail_mm = 2 * max(max(grid_mm[axis], spacing_mm[axis]) for axis in smooth)
        seen = f"there is no detail finer than about {detail_mm:.2g} mm along {_names(smooth)}"
    else:
        return None
    return (
        f"the header states voxels of {size_text(spacing_mm)}, but {seen}, as after interpolation from larger voxels; "
        "check that this is the original scan"
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


def _finer_axes(spacing_mm: NDArray[np.float64], grid_mm: NDArray[np.float64]) -> str:
    """Name the axes along which a grid, or another scan, is much coarser than a scan; empty if there is none.

    Between the samples of a coarser grid, detail is lost, and regular detail leaves a false pattern (aliasing).
    """
    return _compared(np.flatnonzero(grid_mm > MAX_SAMPLING_STEP * spacing_mm), spacing_mm, grid_mm)


def _compared(axes: NDArray[np.intp], spacing_mm: NDArray[np.float64], grid_mm: NDArray[np.float64]) -> str:
    return " and ".join(f"{AXES[axis]} ({spacing_mm[axis]:.3g} mm against {grid_mm[axis]:.3g} mm)" for axis in axes)


def _names(axes: Iterable[int]) -> str:
    return " and ".join(AXES[axis] for axis in axes)
