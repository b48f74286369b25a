"""Measure sharpness: the width of the head's edge along each axis, and the power spectrum of its inside."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

# The surface of the head is used where it faces an axis within about 17 degrees.
MAX_SLOPE, SMOOTH_MM = 0.3, 10.0
OUTSIDE_MM, INSIDE_MM, STEP_MM = 10.0, 8.0, 0.25
# The mask of the head may lie this far from the place of half brightness.
SEARCH_VOX = 4
# The outermost part of a profile is air, whose level is subtracted.
AIR_MM = 3.0
# Lines with less air than this in front of the head are left out. If there is less than a profile holds, it is
# continued with its first value.
LEAST_AIR_MM = 6.0
LEAST_LINES = 30
# The distance between 25% and 75% of a step that a Gaussian has blurred, relative to the Gaussian's full width at half
# maximum.
QUARTERS_OF_WIDTH = 0.5728
# Share of the energy below the frequency that stands for the bandwidth.
ENERGY_SHARE = 0.95
# Cycles per mm between which the slope is fitted. Above, slices of 5 mm hold nothing.
SLOPE_BAND = (0.02, 0.09)
SLOPE_BINS = 12


def edge_width(
    voxels: NDArray[np.float32], head: NDArray[np.bool_], spacing_mm: NDArray[np.float64], axis: int
) -> float | None:
    """Measure how wide the edge between air and skin is along an axis.

    Profiles along the axis are taken where the surface of the head faces it. Each is shifted so that it reaches half
    the brightness of skin at the same place, and their average is the edge's response. The distance between 25% and 75%
    of its step is converted to the width of a Gaussian blur.

    Args:
        voxels: `(X, Y, Z)`.
        head: `(X, Y, Z)`, the head.
        spacing_mm: `(3,)`, voxel size.
        axis: 0, 1 or 2.

    Returns:
        Full width at half maximum of the Gaussian, in mm; None if the surface faces the axis in too few places.
    """
    order = [axis, *(other for other in range(3) if other != axis)]
    lines, inside, spacing = voxels.transpose(order), head.transpose(order), spacing_mm[order]
    profiles = [_aligned(lines, inside, spacing)]
    if axis != 2:
        profiles.append(_aligned(lines[::-1], inside[::-1], spacing))
    stacked = np.concatenate(profiles)
    if len(stacked) < LEAST_LINES:
        return None
    response = stacked.mean(axis=0)
    low = float(response[: int(AIR_MM / STEP_MM)].mean())
    high = float(response.max())
    first, last = (_crossing(response, low + share * (high - low)) for share in (0.25, 0.75))
    return (last - first) * STEP_MM / QUARTERS_OF_WIDTH


def _aligned(
    lines: NDArray[np.float32], inside: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the profiles `(N, samples)` at which `lines` `(A, B, C)` enter the head, from air to skin."""
    mm = float(spacing_mm[0])
    surface = inside.argmax(axis=0)
    hit = inside.any(axis=0)
    # The mask is coarse, so its surface has steps.
    heights_mm = surface * mm
    for axis, other_mm in enumerate(spacing_mm[1:].tolist()):
        heights_mm = np.asarray(ndimage.uniform_filter1d(heights_mm, max(round(SMOOTH_MM / other_mm), 1), axis=axis))
    slope_b, slope_c = np.gradient(heights_mm, *spacing_mm[1:].tolist())
    before, behind = int(np.ceil(OUTSIDE_MM / mm)) + SEARCH_VOX, int(np.ceil(INSIDE_MM / mm)) + SEARCH_VOX
    usable = (
        hit
        & (np.hypot(slope_b, slope_c) < MAX_SLOPE)
        & (surface * mm >= LEAST_AIR_MM)
        & (surface < len(lines) - behind)
    )
    first, second = np.nonzero(usable)
    if not len(first):
        return np.empty((0, round((OUTSIDE_MM + INSIDE_MM) / STEP_MM)))
    places = surface[first, second][:, None] + np.arange(-before, behind)
    raw = lines[np.maximum(places, 0), first[:, None], second[:, None]].astype(np.float64)
    air = np.median(raw[:, : max(int(AIR_MM / mm), 1)], axis=1)
    skin = raw[:, before - SEARCH_VOX :].max(axis=1)
    half = (air + skin) / 2
    # The last sample below half before skin.
    peak = before - SEARCH_VOX + raw[:, before - SEARCH_VOX :].argmax(axis=1)
    below = (raw < half[:, None]) & (np.arange(raw.shape[1]) < peak[:, None])
    start = raw.shape[1] - 1 - below[:, ::-1].argmax(axis=1)
    rows = np.arange(len(raw))
    known = below.any(axis=1) & (start < raw.shape[1] - 1) & (skin > air)
    rows, start = rows[known], start[known]
    step = raw[rows, start + 1] - raw[rows, start]
    crossing = start + (half[rows] - raw[rows, start]) / step
    offsets = np.arange(round((OUTSIDE_MM + INSIDE_MM) / STEP_MM)) * STEP_MM / mm - OUTSIDE_MM / mm
    wanted = crossing[:, None] + offsets
    fits = (wanted.min(axis=1) >= 0) & (wanted.max(axis=1) <= raw.shape[1] - 1)
    rows, wanted = rows[fits], wanted[fits]
    whole = np.minimum(wanted.astype(np.int64), raw.shape[1] - 2)
    part = wanted - whole
    profiles = raw[rows[:, None], whole] * (1 - part) + raw[rows[:, None], whole + 1] * part
    return (profiles - air[rows, None]) / (skin - air)[rows, None]


def _crossing(response: NDArray[np.float64], level: float) -> float:
    """Return where a profile `(samples,)` last exceeds `level` on its way to its maximum, in samples."""
    below = np.flatnonzero(response[: int(response.argmax()) + 1] < level)
    start = int(below[-1])
    return start + float((level - response[start]) / (response[start + 1] - response[start]))


def power_spectrum(
    voxels: NDArray[np.float32], deep: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Compute the power spectrum of the inside of the head.

    The box around it is taken, less the mean inside, under a Hann window.

    Args:
        voxels: `(X, Y, Z)`.
        deep: `(X, Y, Z)`, the inside of the head.
        spacing_mm: `(3,)`, voxel size.

    Returns:
        Power `(A, B, C)`, with all frequencies of the first two axes and those from 0 of the third, and the
        frequencies of each axis in cycles per mm, `(A,)`, `(B,)`, `(C,)`.
    """
    box = tuple(
        slice(int(used[0]), int(used[-1]) + 1)
        for used in (np.flatnonzero(deep.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    )
    part = voxels[box] - voxels[deep].mean()
    for axis, size in enumerate(part.shape):
        window = np.hanning(size + 2)[1:-1].astype(np.float32)
        part = part * np.expand_dims(window, [other for other in range(3) if other != axis])
    spectrum: Any = fft.rfftn(part)
    power = np.square(np.abs(spectrum)).astype(np.float64)
    # The last axis holds half of the frequencies, each of which but the first stands for two.
    power[:, :, 1:] *= 2
    make = (fft.fftfreq, fft.fftfreq, fft.rfftfreq)
    frequencies = [
        np.abs(np.asarray(each(size, mm), dtype=np.float64))
        for each, size, mm in zip(make, part.shape, spacing_mm.tolist(), strict=True)
    ]
    return power, frequencies


def bandwidth(power: NDArray[np.float64], frequencies: list[NDArray[np.float64]], axis: int) -> float:
    """Return the frequency along an axis below which 95% of the energy lies.

    Args:
        power: `(A, B, C)`, from `power_spectrum`.
        frequencies: of each axis, in cycles per mm: `(A,)`, `(B,)`, `(C,)`.
        axis: 0, 1 or 2.

    Returns:
        Cycles per mm.
    """
    along = power.sum(axis=tuple({0, 1, 2} - {axis}))
    order = np.argsort(frequencies[axis], kind="stable")
    share = np.cumsum(along[order]) / along.sum()
    return float(np.interp(ENERGY_SHARE, share, frequencies[axis][order]))


def spectral_slope(power: NDArray[np.float64], frequencies: list[NDArray[np.float64]]) -> float | None:
    """Return the exponent of the radial power spectrum: -3 if power falls with the third power of the frequency.

    Args:
        power: `(A, B, C)`, from `power_spectrum`.
        frequencies: of each axis, in cycles per mm: `(A,)`, `(B,)`, `(C,)`.

    Returns:
        The slope of log power over log frequency between 0.02 and 0.09 cycles per mm; None if too few frequencies lie
        there.
    """
    first, second, third = np.meshgrid(*frequencies, indexing="ij", sparse=True)
    radius = np.sqrt(first**2 + second**2 + third**2)
    counts = np.full(power.shape, 2.0)
    counts[:, :, 0] = 1
    edges = np.geomspace(*SLOPE_BAND, SLOPE_BINS + 1)
    number = np.digitize(radius, edges)
    power_sums, counted = (
        np.bincount(number.ravel(), each.ravel(), minlength=SLOPE_BINS + 2)[1:-1] for each in (power, counts)
    )
    filled = (counted > 0) & (power_sums > 0)
    if filled.sum() < 3:
        return None
    middles = np.sqrt(edges[:-1] * edges[1:])[filled]
    slope, _ = np.polyfit(np.log(middles), np.log(power_sums[filled] / counted[filled]), 1)
    return float(slope)
