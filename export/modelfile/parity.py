"""Compares a model file with PyTorch, and measures the loss due to half precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.common.errors import RunError
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.modelfile.parity_slices import SlicePairs
from upfield.model.amir import MIN_SIZE, Amir

# For fp16, this limit only detects a wrong graph. `half_loss` limits the loss due to half precision on real slices.
MAX_DIFFERENCE = {"fp32": 1e-3, "fp16": 5e-2}
# Few pixels may differ by more: if two experts have almost equal logits, rounding decides which of them is chosen.
MAX_SHARE_BEYOND = 1e-3
MAX_LOSS_DB = 0.05
# Number of real slices that are also compared at the two cropped sizes. If the graph cannot handle a size, any slice of
# that size shows it.
NUM_CROPPED = 2


def prove_parity(
    network: Amir, path: Path, slices: SlicePairs, precision: str, advance: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Compare a model file with PyTorch on real slices and a test image, at full size and at two smaller sizes.

    Args:
        network: the exported network, in evaluation mode, on the CPU.
        path: the model file.
        slices: real slices.
        precision: the file's precision, `fp32` or `fp16`.
        advance: function that is called with the number of slices that either side has restored, `count_parity_slices`
            in all.

    Returns:
        The values recorded in the metadata: the keys of `summarise`, the numbers and sizes of the compared slices, the
        ONNX Runtime provider, and for `fp16` the keys of `half_loss`.

    Raises:
        RunError: the file's results differ from PyTorch's, or half precision loses too much PSNR.
    """
    # Only a GPU shows the whole loss due to half precision. On a CPU, ONNX Runtime computes fp16 layers in float32 and
    # rounds only around the islands (see nodes.py).
    restorer = OnnxRestorer(path, "auto" if precision == "fp16" else "cpu")
    real, channels, height, width = slices.low.shape
    sizes = [(height, width), (max(height * 2 // 3, MIN_SIZE), max(width // 2, MIN_SIZE)), (height - 1, width - 3)]
    differences: list[NDArray[np.float32]] = []
    loss: dict[str, Any] = {}
    for rows, columns in sizes:
        drawn = np.broadcast_to(draw(rows, columns), (1, channels, rows, columns))
        whole = (rows, columns) == (height, width)
        low = np.concatenate([slices.low[: real if whole else NUM_CROPPED, :, :rows, :columns], drawn])
        # PyTorch gets one slice at a time, because its memory use grows with the batch.
        with torch.inference_mode():
            expected = np.concatenate([_restore_one(network, batch, advance) for batch in np.split(low, len(low))])
        exported = restorer.run(low)
        advance(len(low))
        differences.append((exported - expected).ravel())
        if precision == "fp16" and whole:
            loss = half_loss(expected[:real], exported[:real], slices.high, path)
    compared: dict[str, Any] = {"slices": real, "drawn_slices": 1, "sizes": [list(size) for size in sizes]}
    compared["provider"] = restorer.provider
    return summarise(np.concatenate(differences), MAX_DIFFERENCE[precision], path) | compared | loss


def _restore_one(network: Amir, low: NDArray[np.float32], advance: Callable[[int], None]) -> NDArray[np.float32]:
    restored = network(torch.from_numpy(low)).numpy()
    advance(1)
    return restored


def count_parity_slices(slices: SlicePairs) -> int:
    """Return how many slices PyTorch and the model file restore for a comparison, at all sizes together."""
    real = len(slices.low)
    return 2 * (real + 1 + 2 * (min(real, NUM_CROPPED) + 1))


def summarise(differences: NDArray[np.float32], limit: float, path: Path) -> dict[str, Any]:
    """Compute statistics of the differences between the file's values and PyTorch's.

    Args:
        differences: `(values,)`, intensities.
        limit: largest difference that counts as equal.
        path: the file, for error messages.

    Returns:
        `max_abs_difference`, `share_beyond` (the share of differences beyond `limit`), `limit`, and `psnr_db` against
        PyTorch, None if nothing differs.

    Raises:
        RunError: a difference is not finite, or more than MAX_SHARE_BEYOND of the differences exceed the limit.
    """
    largest = float(np.abs(differences).max())
    # Written as `not <=` instead of `>`, so that NaN counts as beyond the limit.
    beyond = float(np.mean(~(np.abs(differences) <= limit)))
    if beyond > MAX_SHARE_BEYOND or not np.isfinite(largest):
        raise RunError(
            f"{path}: {100 * beyond:.3g}% of the values differ from PyTorch's by more than {limit}, and the largest "
            f"difference is {largest:.3g}. The exported graph is wrong, and nothing was written."
        )
    squared = float(np.mean(np.square(differences, dtype=np.float64)))
    psnr_db = -10 * float(np.log10(squared)) if squared else None
    return {"max_abs_difference": largest, "share_beyond": beyond, "limit": limit, "psnr_db": psnr_db}


def half_loss(
    expected: NDArray[np.float32], exported: NDArray[np.float32], high: NDArray[np.float32], path: Path
) -> dict[str, Any]:
    """Compute how much PSNR against the targets a half-precision file loses compared with PyTorch in float32.

    Args:
        expected: `(N, 1, H, W)`, PyTorch's slices.
        exported: `(N, 1, H, W)`, the file's slices.
        high: `(N, 1, H, W)` in [0, 1], the targets.
        path: the file, for error messages.

    Returns:
        `psnr_slice_float32_db`, `psnr_slice_db` and their difference `psnr_lost_db`, in dB.

    Raises:
        RunError: the file loses more than 0.05 dB.
    """
    before, after = (float(np.mean(psnr_slice_db(restored, high))) for restored in (expected, exported))
    if not before - after <= MAX_LOSS_DB:
        raise RunError(
            f"{path}: half precision may lose at most {MAX_LOSS_DB} dB, but its PSNR is {after:z.3f} dB, and that of "
            f"PyTorch in float32 is {before:z.3f} dB. Nothing was written; export with --precision fp32."
        )
    return {"psnr_slice_float32_db": before, "psnr_slice_db": after, "psnr_lost_db": before - after}


def psnr_slice_db(restored: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute the PSNR of each slice for a data range of 1.

    Args:
        restored: `(N, 1, H, W)`; clipped to [0, 1].
        high: `(N, 1, H, W)` in [0, 1], the targets.

    Returns:
        `(N,)`, dB.
    """
    squares = np.square(np.clip(restored, 0, 1) - high, dtype=np.float64)
    return -10 * np.log10(np.maximum(squares.mean(axis=(1, 2, 3)), 1e-12))


def draw(rows: int, columns: int) -> NDArray[np.float32]:
    """Draw a test image of rings on a ramp, `(rows, columns)` in [0, 1]. Every flip, shift or transpose changes it."""
    down, across = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    rings = np.cos(40 * ((down - 0.4) ** 2 + (across - 0.3) ** 2))
    return ((0.5 + 0.5 * rings) * (0.2 + 0.5 * down + 0.3 * across)).astype(np.float32)
