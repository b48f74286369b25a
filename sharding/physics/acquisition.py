"""Acquire a noise-free signal as a 64 mT scanner does, on a grid of its own."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.resample import Operator, apply_operators, box_centre
from upfield.imaging.volume import Volume
from upfield.sharding.physics.artefacts import add_motion, add_zipper, blank_margin, displace_along, smooth_magnitude
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.point_spread import k_space_operator, slice_operator
from upfield.sharding.physics.relaxation import Relaxation, Tissue, draw_relaxation, relaxation_trees
from upfield.sharding.physics.sequences import Sequence, draw_sequence
from upfield.sharding.physics.smooth_field import BIAS_KNOT_MM, draw_smooth_field

Triple = tuple[int, int, int]
SpacingMm = tuple[float, float, float]
FIELD_KNOT_MM = 70.0


@dataclass(frozen=True)
class Acquisition:
    """Everything that is drawn for one low-field scan, except the fields of noise."""

    sequence: Sequence
    """Sequence, which determines the contrast."""
    relaxations: dict[Tissue, Relaxation]
    """Relaxation times of this person's tissues at 64 mT."""
    slice_axis: int
    """Axis across the slices: 0 is sagittal, 1 coronal, 2 axial."""
    readout_axis: int
    """Axis of the readout, within a slice. The third axis is that of the phase encoding."""
    spacing_mm: SpacingMm
    """Voxel size of the acquired grid along R, A and S."""
    thickness_mm: float
    """Full width of the slice profile at half maximum."""
    profile_edge: float
    """Width of the profile's edges, as a fraction of the thickness."""
    zero_filling: float
    """In-plane voxels after zero filling for each measured one."""
    taper: float
    """Fraction of the measured in-plane frequencies that a window damps."""
    snr: float
    """Signal of white matter, divided by the standard deviation of the noise in each channel."""
    log_bias_rms: float
    """Root mean square of the logarithm of the coil's sensitivity."""
    off_resonance_mm: float
    """Root mean square displacement along the readout."""
    motion_mm: float
    """Largest displacement during the scan; 0 for most scans."""
    zipper_strength: float
    """Amplitude of the zipper, in standard deviations of the noise; 0 for most scans."""
    smoothing: float = 0.0
    """Share of each voxel that comes from its two neighbours along each axis."""
    margin_mm: float = 0.0
    """Width of the margin of zeros at the corners of the image."""

    @property
    def phase_axis(self) -> int:
        """Axis of the phase encoding."""
        return 3 - self.slice_axis - self.readout_axis

    def to_tree(self) -> dict[str, Any]:
        """Return the parameters as plain values, as they are recorded with each sample."""
        tree = asdict(self)
        tree["relaxations"] = relaxation_trees(self.relaxations)
        return tree | {"spacing_mm": list(self.spacing_mm)}


def draw_acquisition(
    config: PhysicsConfig, contrast: str, rng: np.random.Generator, spacing_mm: SpacingMm | None = None
) -> Acquisition:
    """Draw the parameters of one low-field scan.

    Args:
        config: ranges of the parameters.
        contrast: T1w, T2w or FLAIR.
        rng: generator that draws them.
        spacing_mm: spacing along R, A and S, if it is not to be drawn. The slice axis is that of the largest spacing.

    Raises:
        InputError: the contrast is not T1w, T2w or FLAIR.
    """

    def draw(name: str) -> float:
        return round(float(rng.uniform(*getattr(config, name))), 6)

    sequence = draw_sequence("low", contrast, rng, config)
    relaxations = draw_relaxation("low", rng, config.relaxation_spread)
    slice_axis = int(rng.choice(3, p=config.slice_axis))
    turn = 1 + int(rng.integers(2))
    in_plane_mm, thickness_mm, gap = draw("in_plane_mm"), draw("thickness_mm"), draw("gap")
    if spacing_mm is None:
        spacing = [in_plane_mm] * 3
        spacing[slice_axis] = round(thickness_mm * (1 + gap), 6)
        spacing_mm = (spacing[0], spacing[1], spacing[2])
    else:
        slice_axis = int(np.argmax(spacing_mm))
        thickness_mm = round(spacing_mm[slice_axis] / (1 + gap), 6)
    moves, zips = rng.random(2) < (config.motion_rate, config.zipper_rate)
    motion_mm, zipper_strength = draw("motion_mm"), draw("zipper_strength")
    return Acquisition(
        sequence=sequence,
        relaxations=relaxations,
        slice_axis=slice_axis,
        readout_axis=(slice_axis + turn) % 3,
        spacing_mm=spacing_mm,
        thickness_mm=thickness_mm,
        profile_edge=draw("profile_edge"),
        zero_filling=draw("zero_filling"),
        taper=draw("taper"),
        snr=round(math.exp(rng.uniform(math.log(config.snr[0]), math.log(config.snr[1]))), 6),
        log_bias_rms=draw("log_bias_rms"),
        off_resonance_mm=draw("off_resonance_mm"),
        motion_mm=motion_mm if moves else 0.0,
        zipper_strength=zipper_strength if zips else 0.0,
        # Ranges that end at 0 draw nothing, so that sets with recorded ranges can be built again.
        smoothing=draw("smoothing") if config.smoothing[1] else 0.0,
        margin_mm=draw("margin_mm") if config.margin_mm[1] else 0.0,
    )


def acquire(signal: Volume, acquisition: Acquisition, rng: np.random.Generator, shape: Triple | None = None) -> Volume:
    """Acquire a low-field scan of a noise-free signal.

    The head is first averaged over the slices and measured along the phase encoding. It is then small, and is
    displaced along the readout by off-resonance, measured along the readout, weighted by the coil, and gets its noise.

    Args:
        signal: `(I, J, K)` float32 at 64 mT, in RAS+ on any grid; about 1 in white matter, 0 in air.
        acquisition: what was drawn for this scan.
        rng: generator that draws bias, off-resonance, motion and noise.
        shape: voxels of the acquired grid. By default, the grid covers the box of `signal`.

    Returns:
        The magnitude `(A, B, C)` float32 on the acquired grid, which has the centre of `signal`, and its affine.
    """
    grid = _acquired_grid(signal, acquisition, shape)
    readout, phase = acquisition.readout_axis, acquisition.phase_axis
    spreads = [_point_spread(signal, acquisition, grid, axis) for axis in range(3)]
    narrow = apply_operators(signal.voxels, [None if axis == readout else spreads[axis] for axis in range(3)])
    step_mm = [float(grid.spacing_mm[axis]) for axis in range(3)]
    step_mm[readout] = float(signal.spacing_mm[readout])
    if acquisition.off_resonance_mm > 0:
        displacement = draw_smooth_field(rng, narrow.shape, step_mm, FIELD_KNOT_MM)
        displacement *= np.float32(acquisition.off_resonance_mm / step_mm[readout])
        narrow = displace_along(narrow, displacement, readout)
    clean = apply_operators(narrow, [spreads[axis] if axis == readout else None for axis in range(3)])
    if acquisition.log_bias_rms > 0:
        bias = draw_smooth_field(rng, clean.shape, list(map(float, grid.spacing_mm)), BIAS_KNOT_MM)
        clean *= np.exp(np.float32(acquisition.log_bias_rms) * bias)
    moved = clean
    if acquisition.motion_mm:
        moved = add_motion(clean, acquisition.motion_mm / step_mm[phase], acquisition.zero_filling, phase, rng)
    voxels = _magnitude(moved, acquisition, rng)
    if acquisition.smoothing:
        voxels = smooth_magnitude(voxels, acquisition.smoothing)
    if acquisition.margin_mm:
        voxels = blank_margin(voxels, acquisition.margin_mm / grid.spacing_mm)
    return replace(grid, voxels=voxels)


def acquired_shape(size_mm: Iterable[float], spacing_mm: Iterable[float]) -> Triple:
    """Return the number of voxels along each axis that cover a box.

    Args:
        size_mm: `(3,)`, side lengths of the box.
        spacing_mm: `(3,)`, voxel size.
    """
    first, second, third = (max(round(size / step), 2) for size, step in zip(size_mm, spacing_mm, strict=True))
    return first, second, third


def _acquired_grid(signal: Volume, acquisition: Acquisition, shape: Triple | None) -> Volume:
    """Return an empty volume on the acquired grid, whose centre is that of the signal."""
    if shape is None:
        shape = acquired_shape(signal.spacing_mm * signal.voxels.shape, acquisition.spacing_mm)
    step = np.array(acquisition.spacing_mm) / signal.spacing_mm
    move = np.diag([*step, 1.0])
    move[:3, 3] = box_centre(signal.voxels.shape) - step * box_centre(shape)
    return Volume(np.zeros(shape, dtype=np.float32), signal.affine @ move)


def _point_spread(signal: Volume, acquisition: Acquisition, grid: Volume, axis: int) -> Operator:
    """Return the operator from the grid of the signal to the acquired grid along one axis."""
    step = round(acquisition.spacing_mm[axis] / float(signal.spacing_mm[axis]), 6)
    num_in, num_out = signal.voxels.shape[axis], grid.voxels.shape[axis]
    if axis == acquisition.slice_axis:
        thickness_vox = acquisition.thickness_mm / float(signal.spacing_mm[axis])
        return slice_operator(num_in, num_out, step, thickness_vox, acquisition.profile_edge)
    return k_space_operator(num_in, num_out, step, acquisition.zero_filling, acquisition.taper)


def _magnitude(
    clean: NDArray[np.floating | np.complexfloating], acquisition: Acquisition, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Add noise and zipper to both channels of `(A, B, C)`, and return the magnitude, float32.

    Noise is white on the measured grid. Within a slice, it is as smooth as the zero-filled image. The magnitude follows
    the distribution of Rice (Gudbjartsson and Patz, Magn Reson Med 34, 1995).
    """
    operators: list[Operator | None] = [None] * 3
    counts = list(clean.shape)
    for axis in (acquisition.readout_axis, acquisition.phase_axis):
        counts[axis] = math.ceil(clean.shape[axis] / acquisition.zero_filling)
        step = 1 / acquisition.zero_filling
        operators[axis] = k_space_operator(
            counts[axis], clean.shape[axis], step, acquisition.zero_filling, acquisition.taper
        )
    noise = rng.standard_normal((2, *counts), dtype=np.float32)
    if acquisition.zipper_strength:
        noise = add_zipper(noise, acquisition.zipper_strength, acquisition.readout_axis, acquisition.slice_axis, rng)
    real, imaginary = (apply_operators(channel, operators) for channel in noise)
    std = np.float32(1 / (acquisition.snr * _noise_gain(operators)))
    return np.hypot(clean.real + std * real, clean.imag + std * imaginary, dtype=np.float32)


def _noise_gain(operators: list[Operator | None]) -> float:
    """Return the standard deviation of white noise of standard deviation 1 after the operators, far from the border."""
    gain = 1.0
    for operator in operators:
        if operator is not None:
            middle = operator.shape[0] // 2
            rows = next(block for block in operator.blocks if block[0].start <= middle < block[0].stop)
            gain *= float(np.sqrt(np.square(rows[2][middle - rows[0].start]).sum()))
    return gain
