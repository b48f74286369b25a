"""What a scanner's resolution does to a line of voxels: one matrix per axis."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.resample import Operator

# Empty space around the head in the field of view, as a fraction of the box, which keeps one end of the box from
# folding onto the other.
OVERSAMPLING = 1.25
# Samples of the profile per voxel of the signal.
SAMPLES = 8


@lru_cache(maxsize=64)
def k_space_operator(num_in: int, num_out: int, step: float, zero_filling: float, taper: float) -> Operator:
    """Return the operator of a truncated, windowed and zero-filled k-space along one axis.

    The discrete Fourier transform of the line is multiplied by a Tukey window that ends at the highest measured
    frequency, and evaluated at the output voxels. Both grids have the same centre.

    Args:
        num_in: voxels of the line.
        num_out: voxels after zero filling.
        step: output spacing in input voxels.
        zero_filling: output voxels per measured one, at least 1.
        taper: fraction of the measured frequencies that the window damps, 0 to 1.
    """
    period = int(np.ceil(num_in * OVERSAMPLING))
    highest = min(0.5 / (step * zero_filling), 0.5)
    frequency = np.arange(1, period // 2 + 1) / period
    window = tukey(frequency / highest, taper)
    kept = window > 0
    # All frequencies but 0 and the last of an even period occur with both signs.
    weights = np.where(2 * frequency[kept] == 1, 1.0, 2.0) * window[kept] / period
    phase = 2 * np.pi * frequency[kept]
    # cos(p - q) = cos p cos q + sin p sin q splits the sum over frequencies into two matrix products.
    out, into = _centred(num_out, step)[:, None] * phase, _centred(num_in, 1.0)[:, None] * phase
    matrix = (np.cos(out) * weights) @ np.cos(into).T + (np.sin(out) * weights) @ np.sin(into).T
    return Operator.of(1 / period + matrix)


def tukey(frequency: NDArray[np.float64], taper: float) -> NDArray[np.float64]:
    """Return the Tukey window: 1 at low frequencies, 0 above 1, half a cosine over the last fraction `taper`.

    Args:
        frequency: `(N,)`, at least 0, relative to the highest that is measured.
        taper: fraction of the frequencies that are damped, 0 to 1.
    """
    damped = np.clip((frequency - 1) / max(taper, 1e-9) + 1, 0, 1)
    return np.where(frequency <= 1, 0.5 + 0.5 * np.cos(np.pi * damped), 0.0)


@lru_cache(maxsize=64)
def slice_operator(num_in: int, num_out: int, step: float, thickness: float, edge: float) -> Operator:
    """Return the operator of a slice profile: a box whose edges rise like a cosine.

    Args:
        num_in: voxels across the slices.
        num_out: slices. Both grids have the same centre.
        step: distance of the slices in input voxels.
        thickness: full width of the profile at half maximum, in input voxels.
        edge: width of each edge as a fraction of the thickness, 0 to 1.
    """
    offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
    places = (_centred(num_in, 1.0)[:, None] + offsets).ravel()
    distance = np.abs(_centred(num_out, step)[:, None] - places)
    width = max(edge * thickness, 1e-9)
    depth = np.clip((thickness / 2 - distance) / width + 0.5, 0, 1)
    profile = 0.5 - 0.5 * np.cos(np.pi * depth)
    return Operator.of(profile.reshape(num_out, num_in, SAMPLES).sum(axis=2) / (SAMPLES * thickness))


def _centred(count: int, step: float) -> NDArray[np.float64]:
    return (np.arange(count, dtype=np.float64) - (count - 1) / 2) * step
