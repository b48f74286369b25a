"""Turn a high-field image into the signal at 64 mT: a mixture of tissues, fitted inside the head, gives the levels.

The signal is a smooth function of the intensity, one inside the brain and one outside it. Every border of the image
therefore stays where it is and as sharp as it is, and no border of a class is drawn.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from upfield.imaging.head_mask import depth_below_surface, head_mask
from upfield.imaging.plausibility.brains import is_skull_stripped
from upfield.imaging.resample import linear_weights
from upfield.imaging.volume import Volume
from upfield.sharding.physics.brain_region import (
    brain_share,
    deep_region,
    find_brain,
    inner_brain,
)
from upfield.sharding.physics.relaxation import Tissue

# The brain is located on voxels of about this size.
COARSE_MM = 4.0
NUM_BINS = 256
NUM_LEVELS = 4096
EM_STEPS = 50


class MixturePrior(NamedTuple):
    """What is known about the intensities of the brain before the mixture is fitted."""

    order: tuple[Tissue, Tissue, Tissue]
    """The tissues in the order of their intensities at high field."""
    starts: tuple[float, float, float]
    """Where the fit starts: fractions of the brain's voxels below each level."""
    fluid: tuple[float, float]
    """Least and largest level of fluid, relative to its neighbour, because there may be too little fluid to find it."""


PRIORS: Mapping[str, MixturePrior] = {
    "T1w": MixturePrior((Tissue.FLUID, Tissue.GREY, Tissue.WHITE), (0.04, 0.35, 0.8), (0.25, 0.6)),
    "T2w": MixturePrior((Tissue.WHITE, Tissue.GREY, Tissue.FLUID), (0.2, 0.65, 0.96), (1.3, 10.0)),
    "FLAIR": MixturePrior((Tissue.FLUID, Tissue.WHITE, Tissue.GREY), (0.04, 0.3, 0.75), (0.0, 0.6)),
}
# If fluid is dark, the darker of grey and white matter has at least this level relative to the other, which fluid has
# not: at the start of the fit, and later.
START_LEVEL, NEXT_LEVEL = 0.72, 0.57
# Density of values that belong to no tissue of the brain, such as those of fat and vessels, relative to a Gaussian's.
OUTLIERS = 0.05
# Bone is darker than this, relative to the darkest tissue of the brain and to grey matter.
BONE = (0.6, 0.25)
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
    points = half[::2, ::2, ::2]
    depth_mm = depth_below_surface(head_mask(half)[::2, ::2, ::2], spacing_mm)
    if stripped:
        brain, share = depth_mm > 0, np.ones_like(depth_mm)
        fluid, grey, white = _levels(points[brain] if brain.any() else points.ravel(), contrast)
        muscle, fat = MUSCLE_LEVEL, FAT_LEVEL
    else:
        means = np.asarray(ndimage.gaussian_filter(points, 0.5), dtype=np.float32)
        deep = deep_region(depth_mm, spacing_mm)
        fluid, grey, white = _levels(points[deep] if deep.any() else points.ravel(), contrast)
        least = max(BONE[0] * min(fluid, grey, white), BONE[1] * grey)
        brain = find_brain(means > least, depth_mm, spacing_mm)
        if brain.any():
            # The first fit saw bone and air at the base of the skull.
            fluid, grey, white = _levels(points[inner_brain(brain, spacing_mm)], contrast)
        share = brain_share(brain, depth_mm)
        outer = means[(depth_mm > 0) & (share < 0.5)]
        muscle, fat = np.percentile(outer, (50, 95)).tolist() if outer.size else (MUSCLE_LEVEL, FAT_LEVEL)
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
    inside = _curve([(getattr(levels, tissue.value), signals[tissue]) for tissue in PRIORS[tissues.contrast].order])
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
    return linear_weights(place, coarse).astype(np.float32)


def _levels(values: NDArray[np.float32], contrast: str) -> tuple[float, float, float]:
    """Fit the mixture to voxels of the brain `(N,)`, and return the levels of fluid, grey and white matter."""
    prior = PRIORS[contrast]
    found = fit_mixture(values, prior)
    fluid, grey, white = (found[prior.order.index(name)] for name in (Tissue.FLUID, Tissue.GREY, Tissue.WHITE))
    return fluid, grey, white


def fit_mixture(values: NDArray[np.float32], prior: MixturePrior) -> list[float]:
    """Fit a mixture of three Gaussians by expectation maximisation on a histogram.

    Args:
        values: `(N,)` in [0, 1].
        prior: order of the tissues, start of the fit, and bounds.

    Returns:
        The means, in ascending order, at least `LEAST_STEP` apart.
    """
    counts, edges = np.histogram(values, NUM_BINS, (0, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    total = max(int(counts.sum()), 1)
    means = _apart(np.interp(prior.starts, np.cumsum(counts) / total, centres), prior, START_LEVEL)
    stds, shares = np.full(3, 0.08), np.full(3, 1 / 3)
    for _ in range(EM_STEPS):
        density = shares / stds * np.exp(-0.5 * ((centres[:, None] - means) / stds) ** 2)
        weights = counts[:, None] * density / (density.sum(axis=1, keepdims=True) + OUTLIERS)
        sums = weights.sum(axis=0) + 1e-9
        means = _apart((weights * centres[:, None]).sum(axis=0) / sums, prior, NEXT_LEVEL)
        stds = np.sqrt((weights * (centres[:, None] - means) ** 2).sum(axis=0) / sums).clip(0.01, 0.1)
        shares = sums / sums.sum()
    first, second, third = np.sort(means).tolist()
    second = max(second, first + LEAST_STEP)
    return [first, second, max(third, second + LEAST_STEP)]


def _apart(means: NDArray[np.float64], prior: MixturePrior, next_level: float) -> NDArray[np.float64]:
    """Return the means `(3,)` within the bounds of the prior."""
    first, second, third = means.tolist()
    least, most = prior.fluid
    if prior.order[0] is Tissue.FLUID:
        second = max(second, next_level * third)
        return np.array([min(max(first, least * second), most * second), second, third])
    return np.array([first, second, min(max(third, least * second), most * second)])


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
