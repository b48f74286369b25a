"""Estimate the air around the head: the background of a scan, which is not always its darkest value.

A volume may hold fill values far below its air, negative values beside bright skin (cubic interpolation undershoots),
or zeros in place of voxels that were not measured. Its minimum therefore says little about air. The estimate looks
where air is: along the edges of the field of view, because a head may fill the faces.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.imaging.volume import Volume

# Largest number of voxels that the estimate looks at.
MAX_VOXELS = 2**18
# Width of the border along each axis, as a share of the field of view.
BORDER = 1 / 16
# Air is the densest quarter of the border's values, because neck, fat or other parts may take up half of the border.
AIR_SHARE = 0.25
# The densest quarter of a normal distribution is this many standard deviations wide.
QUARTER_WIDTH = 0.637
# Voxels farther below the level of air than this many standard deviations are outliers.
OUTLIER_SPREADS = 3.0
# A voxel belongs to the head if it is brighter than this share of the way from air to the head's bright tissue.
HEAD_SHARE = 0.2
# In noisy scans, a voxel of the head must also be brighter than air by this many standard deviations: a plane of air
# would otherwise have as many voxels above the threshold as the first plane of the head.
NOISE_SPREADS = 4.5
MAX_HEAD_SHARE = 0.8
# Percentile of the head's voxels that stands for its bright tissue.
BRIGHT_PERCENTILE = 95.0
# Below this many standard deviations of air between air and bright tissue, intensity does not separate the two.
LEAST_CONTRAST = 5.0
# Undershoot affects a few percent as many voxels as the head has. If more are darker than the border, it is not air.
MAX_DARKER = 0.1
# Undershoot and noise that are less than this share of the way to bright tissue below air do not count as darker.
DARKER_SHARE = 0.1
# Even in a slab through the head, the head takes up at most a quarter of the border (measured on real scans).
MAX_HEAD_AT_BORDER = 0.35
MAX_FILLS = 2
# A fill value lies below air by at least this share of the way from air to bright tissue. Nearer ones do no harm.
FILL_GAP = 0.25
CONSEQUENCE = (
    "so air cannot be distinguished from the head: the scan is not centred on its head, and its intensities may be "
    "wrong"
)


@dataclass(frozen=True)
class Air:
    """The background of a volume."""

    level: float
    """The usual value of air."""
    spread: float
    """Robust standard deviation of air."""
    darkest: float
    """The darkest value that is not an outlier; fill values and undershoot lie below it."""
    padding: float
    """The value for voxels outside the field of view: `darkest`, or `level` if `doubt` is set."""
    threshold: float
    """Voxels above this value belong to the head. If `doubt` is set, they are not known, and the value is infinite."""
    doubt: str | None
    """A sentence without a full stop if air cannot be told from the head, otherwise None."""


def estimate_air(voxels: NDArray[np.float32]) -> Air:
    """Estimate the background of a volume.

    1. Leave out fill values, which lie far below everything else.
    2. Take the densest quarter of the values along the edges of the field of view as air.
    3. Find the head's bright tissue: percentile 95 of the voxels above the threshold, which itself depends on the
       bright tissue (as in AFNI's 3dClipLevel), so that empty margins do not change it.
    4. Compare: air must be darker than the head, and hardly any voxel darker than air.

    Args:
        voxels: `(I, J, K)`, finite, in any unit.
    """
    step = int(np.ceil((voxels.size / MAX_VOXELS) ** (1 / 3)))
    sample = voxels[::step, ::step, ::step]
    measured = np.ones(sample.shape, dtype=np.bool_)
    for _ in range(MAX_FILLS):
        measured = _without_fill(sample, measured)
    values = sample[measured]
    border = _border_values(sample, measured)
    level, spread = _densest(border)
    below = values[values < level]
    if spread == 0 and below.size > 0.02 * values.size:
        # Noise of both signs, with exact zeros around it.
        spread = 1.4826 * float(np.median(level - below))
    bright = _bright_tissue(values, level, spread)
    contrast = bright - level
    threshold = level + max(HEAD_SHARE * contrast, min(NOISE_SPREADS * spread, MAX_HEAD_SHARE * contrast))
    lowest, highest = (float(edge) for edge in np.percentile(values, (0.5, 99.5)))
    limit = max(level - OUTLIER_SPREADS * spread, 2 * lowest - highest)
    num_head = int(np.count_nonzero(values > threshold))
    num_darker = int(np.count_nonzero(values < min(limit, level - DARKER_SHARE * contrast)))
    if contrast <= LEAST_CONTRAST * spread:
        doubt = (
            f"the border of the field of view (value {level:.4g}, standard deviation {spread:.3g}) is nearly as bright "
            f"as the head (value {bright:.4g})"
        )
    elif num_darker > MAX_DARKER * num_head:
        share = num_darker / (num_darker + num_head)
        doubt = (
            f"{share:.0%} of the voxels inside the field of view are darker than its border (value {level:.4g}), but "
            "air is the darkest part of a scan"
        )
    elif (share := float(np.mean(border > threshold))) > MAX_HEAD_AT_BORDER:
        doubt = f"the head fills {share:.0%} of the border of the field of view, where air should be"
    else:
        darkest = _lowest_above(voxels, limit)
        return Air(level, spread, darkest, darkest, threshold, None)
    darkest = _lowest_above(voxels, 2 * lowest - highest)
    return Air(level, spread, darkest, level, float("inf"), f"{doubt}, {CONSEQUENCE}")


def raise_to_air(volume: Volume, air: Air) -> Volume:
    """Replace outliers below air by its darkest value, before interpolation spreads them over their neighbours."""
    if volume.voxels.min() >= air.darkest:
        return volume
    return Volume(np.maximum(volume.voxels, np.float32(air.darkest)), volume.affine, volume.axcodes)


def _without_fill(sample: NDArray[np.float32], measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Leave out the voxels of the lowest value from `measured` if it is a fill value.

    What remains must look like a scan of its own: a border of air that is dark, narrowly distributed, and as frequent
    as air is. The surface of a brain without its skull is not, so its background of zeros stays.

    Args:
        sample: `(I, J, K)`.
        measured: `(I, J, K)`, the voxels that have not been left out.
    """
    values = sample[measured]
    fill = values.min()
    rest = measured & (sample != fill)
    others = sample[rest]
    if others.size < 2:
        return measured
    level, spread = _densest(_border_values(sample, rest))
    if level - fill <= OUTLIER_SPREADS * spread:
        return measured
    bright = _bright_tissue(others, level, spread)
    contrast = bright - level
    is_fill = (
        level - fill > FILL_GAP * contrast > 0
        and contrast > LEAST_CONTRAST * spread
        and np.mean(others < level + HEAD_SHARE * contrast) > AIR_SHARE
        and np.mean(others < level - max(OUTLIER_SPREADS * spread, DARKER_SHARE * contrast)) < MAX_DARKER * AIR_SHARE
    )
    return rest if is_fill else measured


def _border_values(sample: NDArray[np.float32], measured: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the values `(N,)` of the voxels of `sample` `(I, J, K)` where air is to be expected.

    These are the voxels that lie at the border along two axes. If few of them are measured, the field of view is not
    the array's, and the outermost measured voxels are taken.
    """
    at_border: list[NDArray[np.bool_]] = []
    for axis, size in enumerate(sample.shape):
        width = max(int(size * BORDER), 1)
        ends = np.zeros(size, dtype=np.bool_)
        ends[:width] = ends[size - width :] = True
        at_border.append(np.expand_dims(ends, [other for other in range(3) if other != axis]))
    first, second, third = at_border
    edges = (first & second) | (first & third) | (second & third)
    usable = edges & measured
    if usable.sum() < AIR_SHARE * edges.sum():
        usable = measured & np.logical_not(ndimage.binary_erosion(measured, iterations=2))
    return sample[usable]


def _densest(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the middle of the densest quarter of values `(N,)`, and the standard deviation that its width implies."""
    ordered = np.sort(values).astype(np.float64)
    count = max(int(AIR_SHARE * ordered.size), 1)
    widths = ordered[count - 1 :] - ordered[: ordered.size - count + 1]
    narrowest = np.flatnonzero(widths <= widths.min())
    start = int(narrowest[narrowest.size // 2])
    steps = np.diff(ordered)
    # If most values are equal, neighbouring levels are no outliers.
    quantum = float(steps[steps > 0].min()) if (steps > 0).any() else 0.0
    spread = max(float(widths[start]) / QUARTER_WIDTH, quantum / 2)
    return float(np.median(ordered[start : start + count])), spread


def _bright_tissue(values: NDArray[np.float32], level: float, spread: float) -> float:
    """Find percentile 95 of the values `(N,)` that lie above the threshold which follows from it.

    The search starts at the top: a start at the bottom could end in the noise of a large field of view.
    """
    brighter = values[values > level + OUTLIER_SPREADS * spread]
    if not brighter.size:
        return level
    bright = float(np.percentile(brighter, 99.9))
    while True:
        head = values[values > level + HEAD_SHARE * (bright - level)]
        lower = float(np.percentile(head, BRIGHT_PERCENTILE))
        if not lower < bright - 1e-3 * (bright - level):
            return bright
        bright = lower


def _lowest_above(voxels: NDArray[np.float32], limit: float) -> float:
    lowest = float(voxels.min())
    return lowest if lowest >= limit else float(voxels.min(where=voxels >= limit, initial=np.inf))
