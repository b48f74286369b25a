"""Artefacts: off-resonance, motion, zippers, and what the correction of distortion leaves."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MOST_MOVES = 3


def displace_along(voxels: NDArray[np.float32], displacement: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Displace the signal along the readout, and change its density, so that its sum along each line stays the same.

    The output at y shows what lies at x = y - displacement(y), multiplied by dx/dy.

    Args:
        voxels: `(I, J, K)`.
        displacement: `(I, J, K)` in voxels along the axis, as a function of the place in the output.
        axis: axis of the readout.

    Returns:
        `(I, J, K)` float32.
    """
    count = voxels.shape[axis]
    places = np.ix_(*(np.arange(size, dtype=np.float32) for size in voxels.shape))
    place = np.clip(places[axis] - displacement, 0, count - 1)
    below = np.minimum(place, np.float32(count - 2)).astype(np.int32)
    share = place - below
    # One index into the flat volume takes less time than one index per axis.
    strides = [voxels.shape[1] * voxels.shape[2], voxels.shape[2], 1]
    flat = np.ascontiguousarray(voxels).reshape(-1)
    below *= np.int32(strides[axis])
    for other in {0, 1, 2} - {axis}:
        below += (places[other] * strides[other]).astype(np.int32)
    first = flat.take(below, mode="clip")
    below += np.int32(strides[axis])
    result = flat.take(below, mode="clip")
    result -= first
    result *= share
    result += first
    result *= 1 - np.gradient(displacement, axis=axis)
    return result


def add_motion(
    clean: NDArray[np.float32], most_vox: float, zero_filling: float, axis: int, rng: np.random.Generator
) -> NDArray[np.complex64]:
    """Move the head along the phase encoding during the scan: each run of k-space lines sees another position.

    Args:
        clean: `(A, B, C)`, the head at rest.
        most_vox: largest displacement, in voxels.
        zero_filling: voxels for each measured one, which says how much of k-space was measured.
        axis: axis of the phase encoding.
        rng: generator that draws the times and the displacements.

    Returns:
        `(A, B, C)` complex64.
    """
    count = clean.shape[axis]
    num_moves = int(rng.integers(1, MOST_MOVES + 1))
    # The centre of k-space is measured at rest, so that the head stays where it is.
    starts = np.sort(rng.uniform(0.05, 0.45, num_moves)) / zero_filling
    sides = rng.choice((-1.0, 1.0), num_moves)
    shifts = rng.uniform(-1, 1, num_moves)
    shifts *= most_vox / np.abs(shifts).max()
    frequency = np.fft.fftfreq(count)
    moved = np.zeros(count)
    for start, side, shift in zip(starts, sides, shifts, strict=True):
        moved[side * frequency >= start] = shift
    phase = np.exp(-2j * np.pi * frequency * moved).astype(np.complex64)
    shape = [1, 1, 1]
    shape[axis] = count
    return np.fft.ifft(np.fft.fft(clean, axis=axis) * phase.reshape(shape), axis=axis).astype(np.complex64)


def add_zipper(
    noise: NDArray[np.float32], strength: float, readout_axis: int, slice_axis: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Add the line of a narrow-band interference to the noise: at one place of the readout, in every slice.

    Args:
        noise: `(2, A, B, C)`, both channels, of standard deviation 1.
        strength: root mean square amplitude of the line.
        readout_axis: axis of the readout, 0 to 2.
        slice_axis: axis across the slices, 0 to 2.
        rng: generator that draws the place, the width and the phases.

    Returns:
        The noise with the line, `(2, A, B, C)` float32.
    """
    count = noise.shape[readout_axis + 1]
    place, width = rng.uniform(0.1, 0.9) * count, rng.uniform(0.5, 1.2)
    profile = np.exp(-0.5 * ((np.arange(count) - place) / width) ** 2)
    shape = [1, 1, 1, 1]
    shape[readout_axis + 1] = count
    lines = list(noise.shape)
    lines[readout_axis + 1] = 1
    slices = [1, 1, 1, 1]
    slices[slice_axis + 1] = noise.shape[slice_axis + 1]
    line = rng.standard_normal(lines) * strength * rng.uniform(0.5, 1.5, slices)
    return (noise + line * profile.reshape(shape)).astype(np.float32)


def smooth_magnitude(voxels: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Average each voxel of `(A, B, C)` with its two neighbours along each axis, which contribute `share`."""
    kernel = np.array([share / 2, 1 - share, share / 2], dtype=np.float32)
    for axis in range(3):
        voxels = np.asarray(ndimage.convolve1d(voxels, kernel, axis=axis), dtype=np.float32)
    return voxels


def blank_margin(voxels: NDArray[np.float32], margin_vox: NDArray[np.float64]) -> NDArray[np.float32]:
    """Set the margins of an image to 0. They are widest at the corners and vanish in the middle of each face.

    Args:
        voxels: `(A, B, C)`.
        margin_vox: `(3,)`, width at the corners along each axis, in voxels.
    """
    # From the middle of the first voxel to that of the last one; the image ends at -1 and 1.
    axes = ((2 * np.arange(size) + 1 - size) / size for size in voxels.shape)
    places = np.meshgrid(*axes, indexing="ij", sparse=True)
    kept = np.ones(voxels.shape, dtype=np.bool_)
    for axis, place in enumerate(places):
        first, second = (other for number, other in enumerate(places) if number != axis)
        kept &= np.abs(place) <= 1 - margin_vox[axis] / voxels.shape[axis] * (first**2 + second**2)
    return np.where(kept, voxels, np.float32(0))
