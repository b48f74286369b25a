"""Decode stored voxels, and bring values that float32 cannot tell apart into a range in which it can.

float32 has 24 binary digits. Near 1e9, its values are 64 apart, which would flatten a head whose values start there.
Below 1e-38, it loses digits. What is made of a scan depends only on differences of its values, so such values are
shifted, and scaled by a power of two.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray

from upfield.imaging.formats.file_header import VoxelLayout

NUM_SAMPLES = 2**13
# If a conversion keeps less than this share of the different values, it has flattened the image.
LEAST_KEPT = 0.5
# Beyond these, squares and differences of float32 values leave its range.
SMALLEST, LARGEST = 1e-30, 1e30
OFFSET_PERCENTILES = (50, 5, 25, 75, 95)


def decode_voxels(content: BytesIO | Path, layout: VoxelLayout) -> NDArray[np.floating]:
    """Return the voxels of a NIfTI or MGH file without parsing its header again.

    Args:
        content: the file's content from its start to the last voxel, or an uncompressed file, which is memory-mapped.
        layout: how the file stores its voxels.

    Returns:
        `layout.shape` with slope and intercept applied, float32, or float64 if float32 cannot tell the values apart.

    Raises:
        OSError, ValueError, OverflowError, MemoryError: the content is too short, or more than the machine can hold,
            or float64 cannot tell the values apart.
    """
    spec = (layout.shape, layout.dtype, layout.offset_bytes, layout.slope, layout.intercept)
    proxy = ArrayProxy(content, spec)
    is_scaled = (layout.slope, layout.intercept) != (1, 0)
    exact = layout.dtype.itemsize <= 2 or layout.dtype == np.dtype(np.float32).newbyteorder(layout.dtype.byteorder)
    with np.errstate(all="ignore"):
        if exact and not is_scaled:
            return np.asanyarray(proxy, dtype=np.float32)
        stored: Any = proxy.get_unscaled()
        sample = _sample(stored)
        values = sample * np.float64(layout.slope) + np.float64(layout.intercept)
        if _num_values(values) < LEAST_KEPT * _num_values(sample):
            raise ValueError("its values are so large that they cannot be distinguished")
        # float64, the proxy's default, would take twice the memory.
        wanted = np.float32 if _survives(values) else np.float64
        return np.asanyarray(ArrayProxy(content, spec) if isinstance(content, Path) else proxy, dtype=wanted)


def to_float32(voxels: NDArray[np.floating]) -> NDArray[np.float32]:
    """Convert the voxels of a whole volume to float32, shifted and scaled if float32 cannot hold them otherwise.

    Args:
        voxels: `(I, J, K)` float32 or float64, from `decode_voxels` for each of its files.

    Returns:
        The voxels `(I, J, K)`, in scanner units unless they had to be shifted or scaled.
    """
    sample = _sample(voxels).astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return voxels.astype(np.float32)
    with np.errstate(all="ignore"):
        offset = 0.0 if voxels.dtype == np.float32 or _survives(sample) else _best_offset(sample)
        exponent = _exponent(sample - offset)
        if offset or exponent:
            voxels = np.ldexp(voxels.astype(np.float64) - offset, -exponent)
        return voxels.astype(np.float32, copy=False)


def _sample(voxels: NDArray[Any]) -> NDArray[Any]:
    """Return at most `NUM_SAMPLES` voxels, spread over the image."""
    # Files store the first axis innermost, so the transposed image can be flattened without a copy.
    flat = voxels.T.reshape(-1)
    # An odd step does not stay in one column of the image.
    return np.asarray(flat[:: (len(flat) // NUM_SAMPLES) | 1])


def _num_values(sample: NDArray[Any]) -> int:
    return len(np.unique(sample))


def _survives(values: NDArray[np.float64]) -> bool:
    """Return whether float32 tells the values apart that are apart in float64."""
    single = values.astype(np.float32)
    num_values = _num_values(values)
    if num_values == 1:
        return bool(single.flat[0] == values.flat[0]) or not np.isfinite(values.flat[0])
    return _num_values(single) >= LEAST_KEPT * num_values and _exponent(values) == 0


def _best_offset(values: NDArray[np.float64]) -> float:
    """Return the offset after which float32 tells most values apart."""
    candidates = [0.0, *np.percentile(values, OFFSET_PERCENTILES, method="nearest").tolist()]
    return max(candidates, key=lambda offset: _num_values(_normalised(values - offset)))


def _normalised(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ldexp(values, -_exponent(values)).astype(np.float32)


def _exponent(values: NDArray[np.float64]) -> int:
    """Return the power of two by which values are divided, so that float32 can hold their squares: usually 0."""
    sizes = np.abs(values[values != 0])
    usual = float(np.median(sizes)) if sizes.size else 1.0
    if SMALLEST <= usual <= LARGEST or not np.isfinite(usual):
        return 0
    return int(np.frexp(usual)[1])
