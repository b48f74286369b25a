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

from upfield.imaging.head_mask import connected_parts, head_mask
from upfield.imaging.plausibility.brains import is_skull_stripped
from upfield.imaging.volume import Volume
from upfield.sharding.physics.relaxation import Tissue

# The brain is located on voxels of about this size.
COARSE_MM = 4.0
NUM_BINS = 256
NUM_LEVELS = 4096
EM_STEPS = 50
# Voxels this deep below the surface of the head, and not farther below its top, are mostly brain.
BRAIN_DEPTH_MM = 22.0
BRAIN_HEIGHT_MM = 140.0
# The brain lies below the scalp and is as large as this, with all that an erosion and a wider dilation add.
LEAST_SCALP_MM = 5.0
LITRES = (0.8, 2.6)
OPENING_VOX = 2
REGROWTH_VOX = 5
CLOSING_VOX = 4
BALL = (ndimage.generate_binary_structure(3, 1), ndimage.generate_binary_structure(3, 2))
# The borders of the brain, and of the tissue below the scalp, are this smooth.
BLEND_VOX = 1.0
SHELL_MM = (14.0, 30.0)
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
# Dark fluid is at most this bright, relative to its neighbour; so is the neighbour of bright fluid, relative to fluid.
DARK_FLUID = 0.75
# Levels outside the brain if nothing is seen there.
MUSCLE_LEVEL, FAT_LEVEL = 0.3, 0.9
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


@dataclass(frozen=True)
class HeadTissues:
    """What was found in a high-field image. It serves all low fields that are made from the image."""

    contrast: str
    """Contrast of the image: T1w, T2w or FLAIR."""
    levels: TissueLevels
    """Intensities of the tissues."""
    share: NDArray[np.float32]
    """How much each voxel of a coarse grid `(I, J, K)` follows the curve of the brain, 0 to 1."""
    stride: int
    """Voxels of the image from one voxel of the coarse grid to the next."""


def find_tissues(high: Volume, contrast: str) -> HeadTissues:
    """Find the brain and the intensities of the tissues in a high-field image.

    Args:
        high: `(X, Y, Z)` float32, in RAS+, scaled to [0, 1] with 0 in air.
        contrast: T1w, T2w or FLAIR.
    """
    step = max(round(COARSE_MM / 2 / float(high.spacing_mm.max())), 1)
    half = np.ascontiguousarray(high.voxels[::step, ::step, ::step])
    stripped = is_skull_stripped(Volume(half, high.affine @ np.diag([step, step, step, 1.0])))
    spacing_mm = high.spacing_mm * 2 * step
    depth_mm = _depth_mm(head_mask(half)[::2, ::2, ::2], spacing_mm)
    fluid, grey, white = _brain_levels(half[::2, ::2, ::2], depth_mm, float(spacing_mm[2]), contrast, stripped)
    muscle, fat, share = MUSCLE_LEVEL, FAT_LEVEL, np.ones_like(depth_mm)
    if not stripped:
        values = np.asarray(ndimage.uniform_filter(half, 2), dtype=np.float32)[::2, ::2, ::2]
        share = _brain_share(values, depth_mm, (fluid, grey, white), contrast, spacing_mm)
        outer = values[(depth_mm > 0) & (share < 0.5)]
        muscle, fat = np.percentile(outer, (50, 95)).tolist() if outer.size else (muscle, fat)
        muscle = max(muscle, 0.05)
    levels = TissueLevels(fluid, grey, white, muscle, max(fat, muscle + 0.1), stripped)
    return HeadTissues(contrast, levels, share, 2 * step)


def low_field_signal(high: Volume, tissues: HeadTissues, signals: Mapping[Tissue, float]) -> Volume:
    """Compute the noise-free signal at 64 mT of a head that a high-field scanner measured with the same contrast.

    Args:
        high: `(X, Y, Z)` float32, in RAS+, scaled to [0, 1] with 0 in air.
        tissues: what `find_tissues` found in it.
        signals: signal of each tissue at 64 mT, relative to white matter.

    Returns:
        The signal on the same grid, `(X, Y, Z)` float32, 0 in air and about 1 in white matter.
    """
    levels = tissues.levels
    inside = _curve([(getattr(levels, tissue.value), signals[tissue]) for tissue in ORDER[tissues.contrast]])
    outside = inside
    if not levels.stripped:
        outside = _curve([(levels.muscle, signals[Tissue.MUSCLE]), (levels.fat, signals[Tissue.FAT])])
    voxels = replace_values(high.voxels, inside, outside, tissues.share, tissues.stride)
    return Volume(voxels, high.affine, high.axcodes)


def replace_values(
    high: NDArray[np.float32],
    inside: NDArray[np.float32],
    outside: NDArray[np.float32],
    share: NDArray[np.float32],
    stride: int,
) -> NDArray[np.float32]:
    """Replace each intensity by a mean of two curves.

    Args:
        high: `(X, Y, Z)` in [0, 1].
        inside: `(NUM_LEVELS,)`, signal in the brain of evenly spaced intensities from 0 to 1.
        outside: the same outside the brain.
        share: weight of `inside`, on a grid with every `stride`-th voxel.
        stride: voxels from one weight to the next.

    Returns:
        `(X, Y, Z)` float32.
    """
    result = np.empty_like(high)
    first, second, third = (_hats(size, coarse, stride) for size, coarse in zip(high.shape, share.shape, strict=True))
    away = np.matmul(second, np.clip(1 - share, 0, 1) @ third.T)
    step = outside - inside
    for x, plane in enumerate(high):
        index = (np.clip(plane, 0, 1) * np.float32(NUM_LEVELS - 1)).astype(np.int16)
        used = np.flatnonzero(first[x])
        weight = np.tensordot(first[x, used], away[used], axes=1)
        weight *= step[index]
        np.add(weight, inside[index], out=result[x])
    return result


def _hats(size: int, coarse: int, stride: int) -> NDArray[np.float32]:
    """Return the matrix `(size, coarse)` of linear interpolation between every `stride`-th voxel."""
    place = np.minimum(np.arange(size) / stride, coarse - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(coarse))).astype(np.float32)


def _depth_mm(head: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the depth below the surface of the head; the head goes on beyond the border, as the neck does."""
    depth = ndimage.distance_transform_edt(np.pad(head, 1, mode="edge"), sampling=list(spacing_mm))
    return np.asarray(depth, dtype=np.float32)[1:-1, 1:-1, 1:-1]


def _brain_levels(
    values: NDArray[np.float32], depth_mm: NDArray[np.float32], spacing_mm: float, contrast: str, stripped: bool
) -> tuple[float, float, float]:
    """Fit the mixture to voxels of the brain, and return the levels of fluid, grey and white matter.

    Args:
        values: `(I, J, K)`, on the coarse grid.
        depth_mm: `(I, J, K)`, depth below the surface.
        spacing_mm: voxel size along the body.
        contrast: T1w, T2w or FLAIR.
        stripped: whether all of the head is brain.
    """
    deep = (depth_mm > (0 if stripped else BRAIN_DEPTH_MM)) & _near_top(depth_mm, spacing_mm)
    found = fit_mixture(values[deep] if deep.any() else values.ravel(), STARTS[contrast])
    fluid, grey, white = (found[ORDER[contrast].index(name)] for name in (Tissue.FLUID, Tissue.GREY, Tissue.WHITE))
    return fluid, grey, white


def _near_top(depth_mm: NDArray[np.float32], spacing_mm: float) -> NDArray[np.bool_]:
    """Return the planes `(1, 1, K)` that are not too far below the top of the head to show brain."""
    planes = np.flatnonzero((depth_mm > 0).any(axis=(0, 1)))
    top = planes[-1] if planes.size else depth_mm.shape[2]
    return (np.arange(depth_mm.shape[2]) >= top - BRAIN_HEIGHT_MM / spacing_mm)[None, None]


def _brain_share(
    values: NDArray[np.float32],
    depth_mm: NDArray[np.float32],
    levels: tuple[float, float, float],
    contrast: str,
    spacing_mm: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Return how much of each voxel follows the curve of the brain: 1 deep in the brain, 0 in the scalp.

    The brain is the largest part of the bright tissue below the scalp after an erosion. The share is smooth, because an
    edge in it would show in the signal.

    Args:
        values: `(I, J, K)`, averaged, on the coarse grid.
        depth_mm: `(I, J, K)`, depth below the surface.
        levels: levels of fluid, grey and white matter.
        contrast: T1w, T2w or FLAIR.
        spacing_mm: `(3,)`, voxel size of the coarse grid.
    """
    fluid, grey, white = levels
    # In T2w, all of the brain is bright. Otherwise, it is brighter than fluid.
    least = 0.6 * white if contrast == "T2w" else (fluid + min(grey, white)) / 2
    tissue = (values > least) & (depth_mm > LEAST_SCALP_MM) & _near_top(depth_mm, float(spacing_mm[2]))
    parts, sizes = connected_parts(_shrink(tissue, OPENING_VOX))
    # Gyri, which the erosion removed, grow again within the bright tissue.
    core = ndimage.binary_dilation(parts == sizes.argmax(), BALL[1], iterations=REGROWTH_VOX, mask=tissue)
    # Sulci and ventricles are closed. The volume is padded, because closing would otherwise stop at its border.
    closed = _shrink(_grow(np.pad(np.asarray(core, np.bool_), CLOSING_VOX), CLOSING_VOX + 1), CLOSING_VOX)
    brain = closed[(slice(CLOSING_VOX, -CLOSING_VOX),) * 3].astype(np.float32)
    litres = float(brain.sum()) * float(np.prod(spacing_mm)) / 1e6
    if sizes.max() == 0 or not LITRES[0] <= litres <= LITRES[1]:
        brain = np.zeros_like(depth_mm)
    # Deep tissue outside the brain is mostly muscle at the base of the skull. It follows the brain too, because a wrong
    # border would do more harm there than a wrong contrast does.
    deep = np.clip((depth_mm - SHELL_MM[0]) / (SHELL_MM[1] - SHELL_MM[0]), 0, 1)
    return np.asarray(ndimage.gaussian_filter(np.maximum(brain, deep), BLEND_VOX), dtype=np.float32)


def _grow(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilate a mask `(I, J, K)` by about a ball: octahedra and cubes in turn."""
    for step in range(radius):
        mask = np.asarray(ndimage.binary_dilation(mask, BALL[step % 2]), dtype=np.bool_)
    return mask


def _shrink(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Erode a mask `(I, J, K)` by about a ball; beyond its border, there is nothing."""
    for step in range(radius):
        mask = np.asarray(ndimage.binary_erosion(mask, BALL[step % 2]), dtype=np.bool_)
    return mask


def fit_mixture(values: NDArray[np.float32], starts: tuple[float, float, float]) -> list[float]:
    """Fit a mixture of three Gaussians by expectation maximisation on a histogram.

    Args:
        values: `(N,)` in [0, 1].
        starts: fraction of the values below the mean of each Gaussian at the start. The smallest part is the fluid,
            which is kept apart from the rest, because there may be little of it.

    Returns:
        The means, in ascending order, at least `LEAST_STEP` apart.
    """
    counts, edges = np.histogram(values, NUM_BINS, (0, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    total = max(int(counts.sum()), 1)
    means = _apart(np.interp(starts, np.cumsum(counts) / total, centres), starts)
    stds, shares = np.full(3, 0.08), np.full(3, 1 / 3)
    for _ in range(EM_STEPS):
        density = shares / stds * np.exp(-0.5 * ((centres[:, None] - means) / stds) ** 2) + 1e-12
        weights = counts[:, None] * density / density.sum(axis=1, keepdims=True)
        sums = weights.sum(axis=0) + 1e-9
        means = _apart((weights * centres[:, None]).sum(axis=0) / sums, starts)
        stds = np.sqrt((weights * (centres[:, None] - means) ** 2).sum(axis=0) / sums).clip(0.01, 0.15)
        shares = sums / sums.sum()
    first, second, third = np.sort(means).tolist()
    second = max(second, first + LEAST_STEP)
    return [first, second, max(third, second + LEAST_STEP)]


def _apart(means: NDArray[np.float64], starts: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the means `(3,)` with that of the fluid, the first or the last, away from the others."""
    first, second, third = means.tolist()
    if starts[0] < 1 - starts[2]:
        return np.array([min(first, DARK_FLUID * second), second, third])
    return np.array([first, second, max(third, second / DARK_FLUID)])


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
