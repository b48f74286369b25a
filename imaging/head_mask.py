"""Where the head is: what of a volume is not air, so that figures need not be those of black background."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

STRIDE = 2
CLOSING_VOX = 3
LEAST_SHARE = 0.05


def head_mask(high: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the head in a high-field volume.

    Half of Otsu's threshold; of its connected parts those of at least 5% of the largest, since skull parts brain from
    scalp; closed by 3 voxels, with all holes of sagittal and axial sections filled; the largest part of that. Computed
    on every second voxel of each axis.

    Args:
        high: `(X, Y, Z)` in [0, 1].

    Returns:
        `(X, Y, Z)`; nothing at all where the volume is constant.
    """
    coarse = high[::STRIDE, ::STRIDE, ::STRIDE]
    if coarse.min() == coarse.max():
        return np.zeros(high.shape, dtype=np.bool_)
    bright = coarse > threshold_otsu(coarse) / 2
    parts, sizes = connected_parts(bright)
    large = (sizes >= LEAST_SHARE * sizes.max())[parts]
    # Padded, so that closing does not take the border for air.
    padded = np.pad(large, CLOSING_VOX, mode="edge")
    inner = (slice(CLOSING_VOX, -CLOSING_VOX),) * 3
    closed = np.asarray(ndimage.binary_closing(padded, iterations=CLOSING_VOX))[inner]
    for axis in (0, 2):
        sections = np.moveaxis(closed, axis, 0)
        filled = [np.asarray(ndimage.binary_fill_holes(section)) for section in sections]
        closed = np.moveaxis(np.stack(filled), 0, axis)
    parts, sizes = connected_parts(closed)
    head = parts == sizes.argmax()
    for axis, size in enumerate(high.shape):
        head = np.repeat(head, STRIDE, axis=axis).take(range(size), axis=axis)
    return head


def connected_parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the connected parts of `(X, Y, Z)`, in the same shape, 0 outside; and give their sizes, that of 0 as 0."""
    parts = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=parts)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts, sizes
