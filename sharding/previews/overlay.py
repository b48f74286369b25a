"""Draw the high field over the low field as edges or tiles, which reveals pairs that are not aligned."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# This colour is visible on the bright rim of a head and on the dark background.
LINE_RGB = (255, 150, 30)
# The scale is fine enough to follow a ventricle, and coarse enough to ignore noise and folds that a low field blurs.
SIGMA_VOX = 2.0
LEAST_STEP = 0.05
NUM_TILES = 8


def draw_overlay(kind: str, high: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Draw the overlay for a low-field slice.

    Args:
        kind: `contour`, lines along the edges of the high field, or `checkerboard`, every other tile of the high field.
        high: `(Y, Z)` in [0, 1].

    Returns:
        `(Y, Z, 4)` RGBA in 0..255, transparent where the low field stays visible.
    """
    overlay = np.empty((*high.shape, 4), dtype=np.uint8)
    if kind == "contour":
        overlay[..., :3], shown = LINE_RGB, find_edges(high)
    else:
        overlay[..., :3], shown = np.rint(high * 255)[..., None], find_tiles(high.shape)
    overlay[..., 3] = np.where(shown, 255, 0)
    return overlay


def find_edges(image: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Find the edges of a slice: where its Laplacian changes sign and its gradient is steep (Marr and Hildreth, 1980).

    Args:
        image: `(Y, Z)` in [0, 1].

    Returns:
        `(Y, Z)` bool, true along lines one voxel wide.
    """
    steep = ndimage.gaussian_gradient_magnitude(image, SIGMA_VOX) > LEAST_STEP
    positive = ndimage.gaussian_laplace(image, SIGMA_VOX) > 0
    edges = np.zeros(image.shape, dtype=bool)
    edges[:-1] |= positive[:-1] != positive[1:]
    edges[:, :-1] |= positive[:, :-1] != positive[:, 1:]
    return edges & steep


def find_tiles(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a checkerboard `(Y, Z)` bool with eight squares along the longer side of `shape`."""
    side = -(-max(shape) // NUM_TILES)
    return (np.indices(shape) // side).sum(0) % 2 == 1
