"""Find the voxels of the head, so that metrics can exclude the black background, and their depth below its surface."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.imaging.air import estimate_air

STRIDE = 2
CLOSING_VOX = 3
LEAST_SHARE = 0.05


def head_mask(high: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the voxels of the head in a high-field volume.

    These steps are applied to every second voxel of each axis:
    1. Take the voxels above the threshold between air and the head.
    2. Keep the connected parts with at least 5% of the largest part's voxels. More than one part is kept because the
       dark skull separates brain from scalp.
    3. Apply a binary closing with 3 iterations, and fill all holes in sagittal and axial sections.
    4. Keep the largest connected part.

    Args:
        high: `(X, Y, Z)` in [0, 1].

    Returns:
        `(X, Y, Z)` bool. If the volume is constant, all values are False. If air cannot be told from the head, all
        values are True.
    """
    coarse = high[::STRIDE, ::STRIDE, ::STRIDE]
    if coarse.min() == coarse.max():
        return np.zeros(high.shape, dtype=np.bool_)
    air = estimate_air(high)
    if air.doubt:
        return np.ones(high.shape, dtype=np.bool_)
    bright = coarse > air.threshold
    parts, sizes = connected_parts(bright)
    large = (sizes >= LEAST_SHARE * sizes.max())[parts]
    # The mask is padded because closing would treat everything beyond the border as air.
    padded = np.pad(large, CLOSING_VOX, mode="edge")
    inner = (slice(CLOSING_VOX, -CLOSING_VOX),) * 3
    closed = np.asarray(ndimage.binary_closing(padded, iterations=CLOSING_VOX))[inner]
    for axis in (0, 2):
        sections = np.moveaxis(closed, axis, 0)
        filled = [np.asarray(ndimage.binary_fill_holes(section)) for section in sections]
        closed = np.moveaxis(np.stack(filled), 0, axis)
    parts, sizes = connected_parts(closed)
    return enlarge_mask(parts == sizes.argmax(), high.shape, STRIDE)


def enlarge_mask(coarse: NDArray[np.bool_], shape: tuple[int, ...], stride: int) -> NDArray[np.bool_]:
    """Return the mask `(I, J, K)` of `shape` of which every `stride`-th voxel is `coarse` `(A, B, C)`."""
    for axis, size in enumerate(shape):
        coarse = np.repeat(coarse, stride, axis=axis).take(range(size), axis=axis)
    return coarse


def depth_below_surface(head: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the depth of each voxel below the surface of the head in mm, `(I, J, K)` float32; 0 outside.

    Args:
        head: `(I, J, K)`. The head goes on beyond the border, as the neck does.
        spacing_mm: `(3,)`, voxel size.
    """
    depth = ndimage.distance_transform_edt(np.pad(head, 1, mode="edge"), sampling=list(spacing_mm))
    return np.asarray(depth, dtype=np.float32)[1:-1, 1:-1, 1:-1]


def connected_parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Label the connected parts of a mask `(X, Y, Z)`.

    Returns:
        Labels `(X, Y, Z)`, which are 0 outside all parts, and the number of voxels of each label `(labels,)`. For
        label 0, this number is 0.
    """
    parts = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=parts)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts, sizes
