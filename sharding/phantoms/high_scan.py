"""Measure a head that was drawn from a label map as a 3 T scanner does."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from upfield.common.ranges import Range
from upfield.imaging.volume import Volume
from upfield.sharding.phantoms.anatomy import F32, TemplateGrid, add_rician, smooth_field
from upfield.sharding.phantoms.configuration import RENDERED_CONTRAST, HeadsConfig
from upfield.sharding.physics.relaxation import Tissue, draw_relaxation, relaxation_trees
from upfield.sharding.physics.sequences import draw_sequence, tissue_signals
from upfield.sharding.physics.smooth_field import BIAS_KNOT_MM

# Blood that flows into the slab is brighter than blood that was saturated in it.
INFLOW: Range = (0.4, 2.0)
# Fat is darker than its relaxation times say, because its protons are off resonance. In some scans it is suppressed.
# Muscle and skin are darker because magnetisation is transferred to their protein.
FAT: Range = (0.2, 0.5)
FLESH: Range = (0.5, 0.9)
SUPPRESSED_RATE = 0.12
SUPPRESSED: Range = (0.1, 0.45)
# The middle of the head is brighter or darker than its surface, and coils end at the neck.
CENTRE: Range = (-0.15, 0.25)
CENTRE_MM = 60.0
COIL_END_MM: Range = (-170.0, -70.0)
COIL_EDGE_MM: Range = (10.0, 30.0)
# Share of scans that were interpolated after the noise was measured, which makes the noise smooth as well.
SMOOTH_NOISE_RATE = 0.4
# Share of scans whose air the scanner's software made black.
BLACK_AIR_RATE = 0.25
# A blur reaches this far. It is narrow, and scipy's is slower.
REACH_VOX = 2
UNITS: Range = (300.0, 1500.0)


@dataclass(frozen=True)
class HighScan:
    """What was drawn for one high-field scan, except its sensitivity and noise."""

    signals: dict[Tissue, float]
    """Signal of each tissue; white matter has about 1."""
    parameters: dict[str, Any]
    """What was drawn, as plain values."""

    def measure(self, clean: Volume, rng: np.random.Generator) -> Volume:
        """Apply coil sensitivity, blur and Rician noise to a noise-free signal `(X, Y, Z)`, in place."""
        first, second, third = clean.spacing_mm
        voxels = clean.voxels
        voxels *= _sensitivity(self.parameters, TemplateGrid(voxels.shape, (first, second, third)), rng)
        voxels = _measured(voxels, self.parameters, rng)
        voxels *= np.float32(self.parameters["units"])
        return replace(clean, voxels=voxels)


def draw_high_scan(config: HeadsConfig, rng: np.random.Generator) -> HighScan:
    """Draw a T1-weighted sequence at 3 T, and the properties of the scanner."""

    def draw(limits: Range) -> float:
        return round(float(rng.uniform(*limits)), 4)

    sequence = draw_sequence("high", RENDERED_CONTRAST, rng)
    relaxations = draw_relaxation("high", rng)
    signals = dict(tissue_signals(sequence, relaxations))
    parameters: dict[str, Any] = {
        "sequence": sequence.to_tree(),
        "relaxations": relaxation_trees(relaxations),
        "inflow": draw(INFLOW),
        "fat": draw(SUPPRESSED if rng.random() < SUPPRESSED_RATE else FAT),
        "flesh": draw(FLESH),
        "log_bias_rms": draw(config.log_bias_rms),
        "centre": draw(CENTRE),
        "coil_end_mm": draw(COIL_END_MM),
        "coil_edge_mm": draw(COIL_EDGE_MM),
        "blur_vox": [draw(config.blur_vox) for _ in range(3)],
        "smooth_noise": bool(rng.random() < SMOOTH_NOISE_RATE),
        "black_air": bool(rng.random() < BLACK_AIR_RATE),
        "snr": draw(config.snr),
        "units": draw(UNITS),
    }
    for factor, tissues in (
        ("inflow", (Tissue.BLOOD,)),
        ("fat", (Tissue.FAT, Tissue.MARROW)),
        ("flesh", (Tissue.MUSCLE, Tissue.SKIN)),
    ):
        for tissue in tissues:
            signals[tissue] *= parameters[factor]
    return HighScan(signals, parameters)


def _measured(clean: F32, parameters: dict[str, Any], rng: np.random.Generator) -> F32:
    """Blur a signal `(X, Y, Z)`, add noise in two channels before or after, and return the magnitude."""
    blur_vox, noise_std = parameters["blur_vox"], 1 / parameters["snr"]
    if not parameters["smooth_noise"]:
        return add_rician(rng, _blurred(clean, blur_vox), noise_std)
    # The blur reduces the noise, so more is added.
    std = np.float32(noise_std * math.prod(1 / math.sqrt(np.square(_kernel(each)).sum()) for each in blur_vox))
    channels = [std * rng.standard_normal(clean.shape, dtype=np.float32) for _ in range(2)]
    channels[0] += clean
    return np.hypot(_blurred(channels[0], blur_vox), _blurred(channels[1], blur_vox))


def _kernel(sigma_vox: float) -> F32:
    """Return the weights of a Gaussian blur, `(2 * REACH_VOX + 1,)`."""
    weights = np.exp(-np.square(np.arange(-REACH_VOX, REACH_VOX + 1) / max(sigma_vox, 1e-3)) / 2)
    return (weights / weights.sum()).astype(np.float32)


def _blurred(voxels: F32, blur_vox: list[float]) -> F32:
    """Blur `(X, Y, Z)` by a Gaussian along each axis."""
    for axis, sigma_vox in enumerate(blur_vox):
        centre, *others = _kernel(sigma_vox)[REACH_VOX:]
        result = centre * voxels
        for distance, weight in enumerate(others, 1):
            before, after = [slice(None)] * 3, [slice(None)] * 3
            before[axis], after[axis] = slice(None, -distance), slice(distance, None)
            result[tuple(after)] += weight * voxels[tuple(before)]
            result[tuple(before)] += weight * voxels[tuple(after)]
        voxels = result
    return voxels


def _sensitivity(parameters: dict[str, Any], grid: TemplateGrid, rng: np.random.Generator) -> F32:
    """Draw the smooth sensitivity `(X, Y, Z)` of the coils."""
    log = smooth_field(rng, grid, BIAS_KNOT_MM)
    log *= np.float32(parameters["log_bias_rms"])
    hills = [np.exp(-np.square(grid.positions_mm(axis) / CENTRE_MM) / 2).astype(np.float32) for axis in range(3)]
    log += np.float32(parameters["centre"]) * hills[0][:, None, None] * hills[1][:, None] * hills[2]
    edge = (grid.positions_mm(2) - parameters["coil_end_mm"]) / parameters["coil_edge_mm"]
    log -= np.logaddexp(0, -edge).astype(np.float32)
    return np.exp(log, out=log)
