"""Measure intensities: noise in air, signal to noise, contrast between tissues, and bias."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.sharding.coverage.regions import box_mean

# Percentiles that describe a distribution without its tails, where ghosts and zippers are.
QUANTILES = (10.0, 50.0, 90.0)
ONE_SIGMA = (15.866, 50.0, 84.134)
# Voxels of 3 mm are averaged before tissues are told apart, so that noise does not decide.
SMOOTH_MM = 3.0
# The bias is what is left if all detail below this standard deviation is averaged out.
BIAS_SIGMA_MM = 25.0
BIAS_STEP_MM = 4.0


def noise_floor(air: NDArray[np.float32]) -> tuple[float, float]:
    """Measure the level and the spread of air, from percentiles, so that ghosts and zippers hardly count.

    Args:
        air: `(N,)`, values of air.

    Returns:
        The median, and half the distance between percentiles 15.87 and 84.13, which is the standard deviation of a
        normal distribution. The median is 1.77 spreads for the magnitude of noise in two channels (Rayleigh), 1.12 for
        the magnitude of noise in one (folded normal), and 0 for noise clipped at 0.
    """
    low, middle, high = np.percentile(air, ONE_SIGMA)
    return float(middle), float(high - low) / 2


def noise_skewness(air: NDArray[np.float32]) -> float | None:
    """Compute the skewness of air from three percentiles: (P90 + P10 - 2 P50) / (P90 - P10).

    It identifies the law of the noise, even if a constant was subtracted: 0 for a normal distribution, 0.15 for the
    magnitude of noise in two channels (Rayleigh), 0.28 for one (folded normal), 1 for noise clipped at 0.

    Args:
        air: `(N,)`, values of air.
    """
    low, middle, high = np.percentile(air, QUANTILES)
    return float((high + low - 2 * middle) / (high - low)) if high > low else None


def tissue_levels(
    voxels: NDArray[np.float32], deep: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> tuple[float, float, float] | None:
    """Find the three modes of intensity inside the head.

    The volume is averaged over 3 mm, and two thresholds divide the values so that the variance within the three
    classes is least (Otsu, IEEE Transactions on Systems, Man and Cybernetics 9, 1979). A mode is a class's median.

    Args:
        voxels: `(X, Y, Z)`.
        deep: `(X, Y, Z)`, the inside of the head.
        spacing_mm: `(3,)`, voxel size.

    Returns:
        Dark, middle and bright; None if the values are nearly constant.
    """
    from skimage.filters import threshold_multiotsu

    values = box_mean(voxels, spacing_mm, SMOOTH_MM)[deep]
    lowest, highest = np.percentile(values, (0.5, 99.5))
    values = values[(values >= lowest) & (values <= highest)]
    if not highest > lowest or np.unique(values[:10000]).size < 3:
        return None
    first, second = threshold_multiotsu(values, classes=3, nbins=128)
    classes = np.digitize(values, (first, second))
    dark, middle, bright = (float(np.median(values[classes == number])) for number in range(3))
    return dark, middle, bright


def bias_spread(voxels: NDArray[np.float32], deep: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> float:
    """Measure how unevenly bright the inside of the head is at a large scale.

    All detail is averaged out with a Gaussian of 25 mm that counts only voxels inside. The result is (P95 - P5) / P50
    of what is left: 0 without bias, if the anatomy is even.

    Args:
        voxels: `(X, Y, Z)`.
        deep: `(X, Y, Z)`, the inside of the head.
        spacing_mm: `(3,)`, voxel size.
    """
    step = [max(round(BIAS_STEP_MM / float(mm)), 1) for mm in spacing_mm]
    weight = _coarse(deep.astype(np.float32), step)
    total = _coarse(np.where(deep, voxels, np.float32(0)), step)
    sigma = BIAS_SIGMA_MM / (np.array(step) * spacing_mm)
    smooth_weight, smooth_total = (np.asarray(ndimage.gaussian_filter(each, sigma)) for each in (weight, total))
    inside = weight > 0.5
    if not inside.any():
        inside = weight > 0
    low, middle, high = np.percentile(smooth_total[inside] / smooth_weight[inside], (5.0, 50.0, 95.0))
    return float((high - low) / middle)


def _coarse(array: NDArray[np.float32], step: list[int]) -> NDArray[np.float32]:
    """Average over blocks of `step` voxels; what is left over at the ends is dropped."""
    counts = [size // each for size, each in zip(array.shape, step, strict=True)]
    cut = array[tuple(slice(count * each) for count, each in zip(counts, step, strict=True))]
    shape = [number for pair in zip(counts, step, strict=True) for number in pair]
    return cut.reshape(shape).mean(axis=(1, 3, 5))
