"""The measures of the audit: what each one is, and all of them on one volume."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.coverage.intensities import bias_spread, noise_floor, noise_skewness, tissue_levels
from upfield.sharding.coverage.regions import LEAST_VOXELS, Regions, find_regions
from upfield.sharding.coverage.sharpness import bandwidth, edge_width, power_spectrum, spectral_slope

AXES = "xyz"
# A plane belongs to the head or to the image if it has more than this share of the voxels of the fullest plane.
LEAST_PLANE = 0.02
# A plane whose standard deviation is smaller than this was not measured, but filled with a constant.
LEAST_STD = 2e-4


@dataclass(frozen=True)
class Measure:
    """One measure of a volume on the high-field grid, with intensities scaled to [0, 1]."""

    name: str
    """Name in JSON."""
    title: str
    """Name in tables and pictures, with the unit."""


MEASURES = (
    Measure("air_floor", "noise floor in air"),
    Measure("air_spread", "noise in air"),
    Measure("air_ratio", "noise floor / noise"),
    Measure("air_skewness", "noise: skewness"),
    Measure("snr", "signal to noise"),
    Measure("texture", "least variation / signal"),
    Measure("dark_contrast", "dark / middle tissue"),
    Measure("bright_contrast", "middle / bright tissue"),
    Measure("bias", "bias"),
    *(Measure(f"edge_{axis}", f"edge width {axis}, mm") for axis in AXES),
    *(Measure(f"bandwidth_{axis}", f"bandwidth {axis}, 1/mm") for axis in AXES),
    Measure("slope", "slope of the spectrum"),
    *(Measure(f"fill_{axis}", f"head / image length {axis}") for axis in AXES),
)
Values = Mapping[str, float | None]


def measure_volume(voxels: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> Values:
    """Measure a low-field volume.

    Args:
        voxels: `(X, Y, Z)` in [0, 1], RAS+.
        spacing_mm: `(3,)`, voxel size.

    Returns:
        The value of each measure by its name; None if it cannot be measured on this volume.
    """
    regions = find_regions(voxels, spacing_mm)
    if regions is None:
        return {measure.name: None for measure in MEASURES}
    air = voxels[regions.air]
    if air.size < LEAST_VOXELS:
        air = air[:0]
    power, frequencies = power_spectrum(voxels, regions.deep, spacing_mm)
    values: dict[str, float | None] = {
        **_noise(voxels, regions, air),
        **_contrast(voxels, regions, spacing_mm),
        "slope": spectral_slope(power, frequencies),
    }
    for number, axis in enumerate(AXES):
        values[f"edge_{axis}"] = edge_width(voxels, regions.head, spacing_mm, number)
        values[f"bandwidth_{axis}"] = bandwidth(power, frequencies, number)
        values[f"fill_{axis}"] = filled_share(voxels, regions.head, number)
    assert values.keys() == {measure.name for measure in MEASURES}
    return values


def _noise(voxels: NDArray[np.float32], regions: Regions, air: NDArray[np.float32]) -> dict[str, float | None]:
    """Measure noise in air `(N,)`, and inside the head of a volume `(X, Y, Z)`."""
    signal = float(np.median(voxels[regions.deep]))
    floor, spread = noise_floor(air) if air.size else (None, None)
    return {
        "air_floor": floor,
        "air_spread": spread,
        "air_ratio": floor / spread if floor is not None and spread else None,
        "air_skewness": noise_skewness(air) if air.size else None,
        "snr": signal / spread if spread else None,
        "texture": float(np.percentile(regions.local_std[regions.deep], 10)) / signal if signal > 0 else None,
    }


def _contrast(
    voxels: NDArray[np.float32], regions: Regions, spacing_mm: NDArray[np.float64]
) -> dict[str, float | None]:
    """Measure the contrast between tissues and the bias of a volume `(X, Y, Z)`."""
    levels = tissue_levels(voxels, regions.deep, spacing_mm)
    dark, middle, bright = levels or (None, None, None)
    return {
        "dark_contrast": dark / middle if dark is not None and middle else None,
        "bright_contrast": middle / bright if middle is not None and bright else None,
        "bias": bias_spread(voxels, regions.deep, spacing_mm),
    }


def filled_share(voxels: NDArray[np.float32], head: NDArray[np.bool_], axis: int) -> float:
    """Compute which share of the field of view the head takes up along an axis.

    Planes that were filled with a constant do not belong to the field of view.

    Args:
        voxels: `(X, Y, Z)`.
        head: `(X, Y, Z)`, the head.
        axis: 0, 1 or 2.
    """
    others = tuple({0, 1, 2} - {axis})
    area = np.count_nonzero(head, axis=others)
    planes = np.flatnonzero(area > LEAST_PLANE * area.max())
    measured = np.flatnonzero(voxels.std(axis=others) > LEAST_STD)
    return float((planes[-1] - planes[0] + 1) / (measured[-1] - measured[0] + 1))
