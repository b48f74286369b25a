"""Texture and thin vessels of a head."""

import math

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.phantoms.anatomy import F32, TemplateGrid, smooth_field

# Spots within a tissue: sizes and shares of the variance.
SPOTS_MM = ((2.2, 0.35), (5.0, 0.3), (16.0, 0.35))
# Between bundles of muscle lie sheets of fat: the places at which a smooth field is near 0.
BUNDLES_MM = (9.0, 5.0)
SHEET_WIDTH = 0.3
STEP_MM = 0.5
VESSEL_LENGTH_MM = (10.0, 50.0)
VESSEL_RADIUS_MM = (0.25, 0.9)
# Standard deviation of the change of direction per step.
BEND = 0.12


def draw_texture(rng: np.random.Generator, grid: TemplateGrid, sheets: NDArray[np.bool_]) -> F32:
    """Draw the texture of a head: spots of several sizes, and thin sheets instead where `sheets` is True.

    Args:
        rng: generator that draws it.
        grid: grid of the head.
        sheets: `(X, Y, Z)`, where bundles with sheets between them are drawn.

    Returns:
        `(X, Y, Z)` float32, with mean 0 and variance 1 where spots are drawn.
    """
    texture = np.zeros(grid.shape, np.float32)
    for size_mm, share in SPOTS_MM:
        texture += np.float32(math.sqrt(share)) * smooth_field(rng, grid, size_mm)
    bundles = smooth_field(rng, grid, BUNDLES_MM[0])
    bundles += np.float32(0.5) * smooth_field(rng, grid, BUNDLES_MM[1])
    np.square(bundles * np.float32(1 / SHEET_WIDTH), out=bundles)
    planes = np.exp(-bundles, out=bundles)
    planes *= np.float32(2.5)
    planes += np.float32(0.5) * texture
    planes -= np.float32(0.4)
    np.copyto(texture, planes, where=sheets)
    return texture


def draw_vessels(
    rng: np.random.Generator, grid: TemplateGrid, number: int, starts: NDArray[np.intp]
) -> tuple[NDArray[np.intp], F32]:
    """Draw thin vessels that wind through the head.

    Args:
        rng: generator that draws them.
        grid: grid of the head.
        number: number of vessels.
        starts: `(places,)`, flat indices of the voxels in which a vessel may start.

    Returns:
        The flat indices of the voxels with vessels `(voxels,)`, and the share of each that a vessel fills.
    """
    if number == 0 or not starts.size:
        return np.zeros(0, np.intp), np.zeros(0, np.float32)
    first = np.stack(np.unravel_index(rng.choice(starts, number), grid.shape), axis=1) + 0.0
    most = math.ceil(VESSEL_LENGTH_MM[1] / STEP_MM)
    turns = np.cumsum(rng.normal(scale=BEND, size=(number, most, 3)), axis=1) + rng.normal(size=(number, 1, 3))
    directions = turns / np.maximum(np.linalg.norm(turns, axis=2, keepdims=True), 1e-6)
    places = first[:, None] + np.cumsum(directions, axis=1) * STEP_MM / np.array(grid.spacing_mm)
    length_mm = rng.uniform(*VESSEL_LENGTH_MM, size=(number, 1))
    reached = np.arange(most) * STEP_MM
    radius_mm = rng.uniform(*VESSEL_RADIUS_MM, size=(number, 1)) * np.sqrt(np.maximum(0, 1 - reached / length_mm))
    filled = np.pi * radius_mm**2 * STEP_MM / math.prod(grid.spacing_mm)
    return _spread(places.reshape(-1, 3), filled.ravel(), grid.shape)


def _spread(
    places: NDArray[np.float64], filled: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.intp], F32]:
    """Divide what fills each of `(places, 3)` among the 8 voxels around it."""
    low = np.floor(places).astype(np.intp)
    part = places - low
    indices, weights = [], []
    for corner in np.ndindex(2, 2, 2):
        voxel = low + corner
        weight = filled * np.where(corner, part, 1 - part).prod(axis=1)
        inside = ((voxel >= 0) & (voxel < shape)).all(axis=1) & (weight > 0)
        indices.append(np.ravel_multi_index(tuple(voxel[inside].T), shape))
        weights.append(weight[inside])
    voxels, place = np.unique(np.concatenate(indices), return_inverse=True)
    share = np.bincount(place, np.concatenate(weights), len(voxels))
    return voxels, np.minimum(share, 1).astype(np.float32)
