"""Made-up heads with known properties."""

import numpy as np
from scipy import ndimage

SPACING_MM = np.array([2.0, 2.0, 2.0])
SHAPE = (84, 100, 92)


def places(shape=SHAPE, spacing_mm=SPACING_MM):
    """Return the position of each voxel from the middle, in mm: three arrays that broadcast to `shape`."""
    axes = ((np.arange(size) - (size - 1) / 2) * mm for size, mm in zip(shape, spacing_mm, strict=True))
    return np.meshgrid(*axes, indexing="ij", sparse=True)


def depth_mm(shape=SHAPE, spacing_mm=SPACING_MM, radius_mm=70.0):
    """Return the depth of each voxel `(X, Y, Z)` below the surface of a ball."""
    return radius_mm - np.sqrt(sum(place**2 for place in places(shape, spacing_mm)))


def rayleigh_head(sigma, seed=0, shape=SHAPE, spacing_mm=SPACING_MM):
    """Return a head `(X, Y, Z)` of 0.8 with brain of 0.5 inside, whose noise has `sigma` in each of two channels."""
    generator = np.random.default_rng(seed)
    deep = depth_mm(shape, spacing_mm)
    head = np.where(deep > 10, 0.5, np.where(deep > 0, 0.8, 0))
    first, second = generator.normal(0, sigma, (2, *shape))
    return np.hypot(head + first, second).astype(np.float32)


def blurred_ball(fwhm_mm):
    """Return a ball `(X, Y, Z)` of 1 in noise of 0.001, blurred with a Gaussian along each axis."""
    ball = np.clip(depth_mm() / 2 + 0.5, 0, 1)
    blurred = ndimage.gaussian_filter(ball, np.array(fwhm_mm) / 2.3548 / SPACING_MM)
    return (blurred + np.abs(np.random.default_rng(0).normal(0, 0.001, SHAPE))).astype(np.float32)
