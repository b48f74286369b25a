"""Turn a high-field image into the signal at 64 mT: a mixture of tissues, fitted inside the head, gives the levels.

The signal is a smooth function of the intensity, one inside the brain and one outside it. Every border of the image
therefore stays where it is and as sharp as it is, and no border of a class is drawn.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from upfield.imaging.head_mask import head_mask
from upfield.imaging.plausibility.brains import is_skull_stripped
from upfield.imaging.volume import Volume
from upfield.sharding.physics.relaxation import Tissue

# The mixture is fitted on every second voxel, and the brain is located on every fourth.
STRIDE = 2
NUM_BINS = 256
NUM_LEVELS = 4096
EM_STEPS = 50
# Voxels this deep below the surface of the head, and not farther below its top, are mostly brain.
BRAIN_DEPTH_MM = 22.0
BRAIN_HEIGHT_MM = 110.0
# Thickness of scalp and skull, and half the width of the zone over which the signal changes to that of the brain.
SHELL_MM = 13.0
BLEND_MM = 5.0
# Tissues of the brain in the order of their intensity at high field.
ORDER: Mapping[str, tuple[Tissue, Tissue, Tissue]] = {
    "T1w": (Tissue.FLUID, Tissue.GREY, Tissue.WHITE),
    "T2w": (Tissue.WHITE, Tissue.GREY, Tissue.FLUID),
    "FLAIR": (Tissue.FLUID, Tissue.WHITE, Tissue.GREY),
}
# Where the mixture starts: fractions of the brain's voxels below each level.
STARTS: Mapping[str, tuple[float, float, float]] = {
    "T1w": (0.04, 0.35, 0.8),
    "T2w": (0.2, 0.65, 0.96),
    "FLAIR": (0.04, 0.3, 0.75),
}
# Neighbouring levels differ by at least this.
LEAST_STEP = 0.02


@dataclass(frozen=True)
class TissueLevels:
    """Intensities of the tissues in a high-field image that is scaled to [0, 1]."""

    fluid: float
    """Cerebrospinal fluid."""
    grey: float
    """Grey matter."""
    white: float
    """White matter."""
    muscle: float
    """Median outside the brain."""
    fat: float
    """95th percentile outside the brain."""
    stripped: bool
    """Whether the image shows a brain without skull, so that nothing lies outside the brain."""

    def to_tree(self) -> dict[str, float]:
        """Return the levels as plain values."""
        return {name: value if isinstance(value, bool) else round(value, 4) for name, value in asdict(self).items()}


def low_field_signal(high: Volume, contrast: str, signals: Mapping[Tissue, float]) -> tuple[Volume, TissueLevels]:
    """Compute the noise-free signal at 64 mT of a head that a high-field scanner measured with the same contrast.

    Args:
        high: `(X, Y, Z)` float32, in RAS+, scaled to [0, 1] with 0 in air.
        contrast: T1w, T2w or FLAIR.
        signals: signal of each tissue at 64 mT, relative to white matter.

    Returns:
        The signal on the same grid, `(X, Y, Z)` float32, 0 in air and about 1 in white matter, and the levels that the
        mixture found.
    """
    coarse = np.ascontiguousarray(high.voxels[::STRIDE, ::STRIDE, ::STRIDE])
    small = Volume(coarse, high.affine @ np.diag([STRIDE, STRIDE, STRIDE, 1.0]))
    depth_mm = _depth_mm(small)
    levels = _fit_levels(small, depth_mm, contrast)
    inside = _curve([(getattr(levels, tissue.value), signals[tissue]) for tissue in ORDER[contrast]])
    outside = inside
    if not levels.stripped:
        outside = _curve([(levels.muscle, signals[Tissue.MUSCLE]), (levels.fat, signals[Tissue.FAT])])
    share = np.clip((depth_mm - SHELL_MM) / (2 * BLEND_MM) + 0.5, 0, 1).astype(np.float32)
    return replace_values(high, inside, outside, np.asarray(ndimage.gaussian_filter(share, 1.0), np.float32)), levels


def replace_values(
    high: Volume, inside: NDArray[np.float32], outside: NDArray[np.float32], share: NDArray[np.float32]
) -> Volume:
    """Replace each intensity by a mean of two curves.

    Args:
        high: `(X, Y, Z)` in [0, 1].
        inside: `(NUM_LEVELS,)`, signal in the brain of evenly spaced intensities from 0 to 1.
        outside: the same outside the brain.
        share: weight of `inside`, on a coarser grid.
    """
    result = np.empty_like(high.voxels)
    hats = [_hats(size, coarse) for size, coarse in zip(high.voxels.shape, share.shape, strict=True)]
    step = outside - inside
    in_plane = np.matmul(hats[1], share @ hats[2].T)
    for x, plane in enumerate(high.voxels):
        index = (np.clip(plane, 0, 1) * np.float32(NUM_LEVELS - 1)).astype(np.int16)
        away = 1 - np.tensordot(hats[0][x], in_plane, axes=1)
        result[x] = step[index] * away + inside[index]
    return Volume(result, high.affine, high.axcodes)


def _hats(size: int, coarse: int) -> NDArray[np.float32]:
    """Return the matrix `(size, coarse)` of linear interpolation, constant beyond both ends."""
    step = size / coarse
    place = np.clip((np.arange(size) + 0.5) / step - 0.5, 0, coarse - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(coarse))).astype(np.float32)


def _depth_mm(small: Volume) -> NDArray[np.float32]:
    """Return the depth below the surface of the head, on every second voxel of `small`."""
    head = head_mask(small.voxels)[::STRIDE, ::STRIDE, ::STRIDE]
    # The head goes on beyond the border of the image, as the neck does.
    padded = np.pad(head, 1, mode="edge")
    inner = (slice(1, -1),) * 3
    depth = ndimage.distance_transform_edt(padded, sampling=list(small.spacing_mm * STRIDE))
    return np.asarray(depth, dtype=np.float32)[inner]


def _fit_levels(small: Volume, depth_mm: NDArray[np.float32], contrast: str) -> TissueLevels:
    """Fit the mixture to the brain of a coarse volume, and measure what lies outside it."""
    values = small.voxels[::STRIDE, ::STRIDE, ::STRIDE]
    stripped = is_skull_stripped(small)
    spacing_mm = float(small.spacing_mm[2]) * STRIDE
    rows = np.flatnonzero((depth_mm > 0).any(axis=(0, 1)))
    lowest = rows[-1] - BRAIN_HEIGHT_MM / spacing_mm if rows.size else 0
    brain = depth_mm > (0 if stripped else BRAIN_DEPTH_MM)
    brain &= np.arange(values.shape[2]) >= lowest
    found = fit_mixture(values[brain] if brain.any() else values.ravel(), STARTS[contrast])
    fluid, grey, white = (found[ORDER[contrast].index(name)] for name in (Tissue.FLUID, Tissue.GREY, Tissue.WHITE))
    shell = values[(depth_mm > 0) & (depth_mm < SHELL_MM)]
    muscle, fat = np.percentile(shell, (50, 95)).tolist() if shell.size else (0.3, 0.9)
    return TissueLevels(fluid, grey, white, max(muscle, 0.05), min(max(fat, muscle + 0.1), 1.0), stripped)


def fit_mixture(values: NDArray[np.float32], starts: tuple[float, float, float]) -> list[float]:
    """Fit a mixture of three Gaussians by expectation maximisation on a histogram.

    Args:
        values: `(N,)` in [0, 1].
        starts: fraction of the values below the mean of each Gaussian at the start.

    Returns:
        The means, in ascending order, at least `LEAST_STEP` apart.
    """
    counts, edges = np.histogram(values, NUM_BINS, (0, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    total = max(int(counts.sum()), 1)
    means = np.interp(starts, np.cumsum(counts) / total, centres)
    stds, shares = np.full(3, 0.08), np.full(3, 1 / 3)
    for _ in range(EM_STEPS):
        density = shares / stds * np.exp(-0.5 * ((centres[:, None] - means) / stds) ** 2) + 1e-12
        weights = counts[:, None] * density / density.sum(axis=1, keepdims=True)
        sums = weights.sum(axis=0) + 1e-9
        means = (weights * centres[:, None]).sum(axis=0) / sums
        stds = np.sqrt((weights * (centres[:, None] - means) ** 2).sum(axis=0) / sums).clip(0.01, 0.15)
        shares = sums / sums.sum()
    first, second, third = np.sort(means).tolist()
    second = max(second, first + LEAST_STEP)
    return [first, second, max(third, second + LEAST_STEP)]


def _curve(points: list[tuple[float, float]]) -> NDArray[np.float32]:
    """Return a smooth monotone curve through points and the origin, `(NUM_LEVELS,)` over intensities from 0 to 1.

    Beyond the last point, the curve goes on with the mean slope of its last part.

    Args:
        points: intensities and signals, in ascending order of the intensities.
    """
    knots = [(0.0, 0.0), *((level, signal) for level, signal in points if level > LEAST_STEP / 2)]
    (before, low), (last, top) = knots[-2:]
    if last < 1:
        knots.append((1.0, max(top + (top - low) * (1 - last) / (last - before), 0.0)))
    levels, signals = zip(*knots, strict=True)
    return PchipInterpolator(levels, signals)(np.linspace(0, 1, NUM_LEVELS)).astype(np.float32)
