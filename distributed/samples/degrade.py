"""Degradation of stored low fields: whenever a sample is read, its low field looks as if it had been scanned again.

Everything is drawn again from the key of the sample, so no low field is seen twice, and every process and thread draws
the same. The changes follow the order of an acquisition: contrast of the tissues, bias of the coils, blur, and noise.
All slices of a sample are degraded as one: they share contrast, bias and blur, and their noise is correlated.

White noise would be wrong here. A low-field scan has thick voxels, and its noise was interpolated together with the
image. So the noise is drawn on a coarser grid, in both channels of the receiver, and interpolated in the same way.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from upfield.distributed.configuration import DegradeConfig

# Coil sensitivities change over distances of this order, in pixels of 1 mm.
BIAS_SPACING_PIXELS = 80.0
# A stream of random numbers of its own, so that turning degradation on does not change the geometry.
STREAM = (1,)
TRUNCATE = 3.0
# Weights of the four points around a position, as polynomials of its distance from the second point.
CUBIC = np.array([[0, -0.5, 1, -0.5], [1, 0, -2.5, 1.5], [0, 0.5, 2, -1.5], [0, 0, -0.5, 0.5]])


def degrade(low: NDArray[np.float16], config: DegradeConfig, key: tuple[int, ...]) -> NDArray[np.float16]:
    """Return a degraded copy of a low field.

    Args:
        low: `(1 + 2*context, H, W)` in [0, 1].
        config: ranges of the degradation.
        key: numbers that the random numbers depend on, as for `augment_pair`.

    Returns:
        `(1 + 2*context, H, W)` in [0, 1].
    """
    rng = np.random.default_rng(np.random.SeedSequence(key, spawn_key=STREAM))
    # All parameters are always drawn, so that enabling one change does not alter the parameters of the others.
    gamma = np.exp(rng.uniform(*np.log(config.gamma)))
    bends = rng.uniform(*config.curve) * _draw_bends(rng)
    bias, noise = rng.uniform(*config.bias), rng.uniform(*config.noise_std)
    sigmas = rng.uniform(*config.blur_pixels, size=2)
    spacings = np.exp(rng.uniform(*np.log(config.noise_spacing_pixels), size=3))
    field_rng, noise_rng = rng.spawn(2)

    image = _change_contrast(low.astype(np.float32), gamma, bends)
    if bias:
        field = smooth_noise(field_rng, (1, *image.shape[1:]), [BIAS_SPACING_PIXELS] * 3)
        image *= np.exp(np.float32(bias) * field)
    for axis, sigma in zip((1, 2), sigmas, strict=True):
        image = _blur(image, float(sigma), axis) if sigma else image
    if noise:
        real = smooth_noise(noise_rng, image.shape, spacings)
        # In tissue, the imaginary part hardly matters. So one is enough for all slices, which are close to each other.
        imaginary = np.float32(noise) * smooth_noise(noise_rng, (1, *image.shape[1:]), spacings)
        image += np.float32(noise) * real
        image = np.sqrt(image * image + imaginary * imaginary)
    return np.clip(image, 0, 1).astype(np.float16)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacings: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float32]:
    """Draw normal noise on a coarse grid, and interpolate it to `shape` by cubic convolution (Keys 1981).

    Args:
        rng: generator.
        shape: shape of the noise. The noise is constant along a dimension of size 1.
        spacings: distance between the points of the coarse grid along each axis, in pixels, at least 1.

    Returns:
        Noise of `shape` with mean 0 and standard deviation 1, both expected over many draws.
    """
    axes = [_cubic_taps(rng, size, spacing) for size, spacing in zip(shape, spacings, strict=True)]
    noise = rng.standard_normal([int(indices.max()) + 1 for indices, _ in axes], dtype=np.float32)
    # The last axis comes first: taking columns is slow, and there are still few rows.
    for axis in reversed(range(len(shape))):
        noise = _combine(noise, *axes[axis], axis)
    return noise


def _cubic_taps(rng: np.random.Generator, size: int, spacing: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the four points of the coarse grid that each of `size` pixels combines, and their weights: `(4, size)`.

    The weights are scaled so that the mean variance of interpolated white noise is 1.
    """
    phase = rng.random()
    if size == 1:
        return np.zeros((1, 1), dtype=np.int64), np.ones((1, 1), dtype=np.float32)
    position = phase + np.arange(size) / spacing
    first = np.floor(position).astype(np.int64)
    weights = CUBIC @ (position - first) ** np.arange(4)[:, None]
    weights /= np.sqrt((weights**2).sum(axis=0).mean())
    return first + np.arange(4)[:, None], weights.astype(np.float32)


def _combine(
    image: NDArray[np.float32], indices: NDArray[np.int64], weights: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    """Replace the entries of `image` along an axis by sums of the entries `indices` with `weights`, `(taps, n)` each.

    Written with sums rather than matrix products, whose threads would compete with those of the training step.
    """
    broadcast = [1] * image.ndim
    broadcast[axis] = -1
    total = image.take(indices[0], axis) * weights[0].reshape(broadcast)
    for tap in range(1, len(indices)):
        term = image.take(indices[tap], axis)
        term *= weights[tap].reshape(broadcast)
        total += term
    return total


def _blur(image: NDArray[np.float32], sigma: float, axis: int) -> NDArray[np.float32]:
    """Blur `image` `(S, H, W)` along an axis by a Gaussian of `sigma` pixels; the edge pixels are repeated outside."""
    size, radius = image.shape[axis], int(np.ceil(TRUNCATE * sigma))
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights = (weights / (2 * weights.sum() - 1)).astype(np.float32)
    padded = image.take(np.clip(np.arange(-radius, size + radius), 0, size - 1), axis)

    def shifted(distance: int) -> NDArray[np.float32]:
        part = slice(radius + distance, radius + distance + size)
        return padded[:, part] if axis == 1 else padded[:, :, part]

    total = image * weights[0]
    for distance in range(1, radius + 1):
        pair = shifted(distance) + shifted(-distance)
        pair *= weights[distance]
        total += pair
    return total


def _draw_bends(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw two numbers `(2,)` whose magnitudes add up to at most 1."""
    skew, s_shape = rng.uniform(-1, 1, size=2)
    return np.array([skew * (1 - abs(s_shape)), s_shape])


def _change_contrast(image: NDArray[np.float32], gamma: float, bends: NDArray[np.float64]) -> NDArray[np.float32]:
    """Map intensities in [0, 1] by u = v^gamma and u + u (1 - u) (a + b (1 - 2u)), where (a, b) are the bends `(2,)`.

    The slope of the second is 1 + a (1 - 2u) + b (1 - 6u + 6u^2), which is not negative if |a| + |b| <= 1.
    """
    if gamma != 1:
        image = image ** np.float32(gamma)
    if bends.any():
        skew, s_shape = bends.astype(np.float32)
        image = image * (1 + (1 - image) * (skew + s_shape * (1 - 2 * image)))
    return image
