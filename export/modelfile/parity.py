"""The proof that a model file computes what PyTorch computes, and what half precision costs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.common.errors import RunError
from upfield.export.scans.restorer import OnnxRestorer
from upfield.model.amir import MIN_SIZE, Amir

# Half precision is held to the targets of real slices; here only a graph that is wrong shall show.
MAX_DIFFERENCE = {"fp32": 1e-3, "fp16": 5e-2}
# Two experts whose logits are equal to the last digits may be taken for each other, and so may a few pixels differ.
MAX_SHARE_BEYOND = 1e-3
MAX_LOSS_DB = 0.05
# Real slices that are also compared cut to other sizes: a shape that the graph cannot do shows on any.
NUM_CUT = 2


@dataclass(frozen=True)
class Slices:
    """Real slices with their targets."""

    low: NDArray[np.float32]
    """`(N, 1 + 2*context, H, W)` in [0, 1]."""
    high: NDArray[np.float32]
    """`(N, 1, H, W)` in [0, 1]."""


def prove_parity(network: Amir, path: Path, slices: Slices, precision: str) -> dict[str, Any]:
    """Compare a model file with PyTorch on real slices and a drawn one, whole and cut to two other sizes.

    Args:
        network: what was exported, in evaluation mode, on the CPU.
        path: the exported file.
        slices: real ones.
        precision: of the file, `fp32` or `fp16`.

    Returns:
        What metadata record: `max_abs_difference`, the share of values beyond `limit`, `psnr_db` against PyTorch (None
        where nothing differs), what was compared and where; for `fp16` also what `half_loss` gives.

    Raises:
        RunError: the two differ.
    """
    # A CPU computes half precision in float32 and rounds at the islands' shores alone: a GPU tells the whole loss.
    restorer = OnnxRestorer(path, "auto" if precision == "fp16" else "cpu")
    real, channels, height, width = slices.low.shape
    sizes = [(height, width), (max(height * 2 // 3, MIN_SIZE), max(width // 2, MIN_SIZE)), (height - 1, width - 3)]
    differences: list[NDArray[np.float32]] = []
    loss: dict[str, Any] = {}
    for rows, columns in sizes:
        drawn = np.broadcast_to(draw(rows, columns), (1, channels, rows, columns))
        whole = (rows, columns) == (height, width)
        low = np.concatenate([slices.low[: real if whole else NUM_CUT, :, :rows, :columns], drawn])
        # One by one, as PyTorch's memory grows with the batch.
        with torch.inference_mode():
            expected = np.concatenate([network(torch.from_numpy(one)).numpy() for one in np.split(low, len(low))])
        found = restorer.run(low)
        differences.append((found - expected).ravel())
        if precision == "fp16" and whole:
            loss = half_loss(expected[:real], found[:real], slices.high, path)
    counted: dict[str, Any] = {"slices": real, "drawn_slices": 1, "sizes": [list(size) for size in sizes]}
    counted["provider"] = restorer.provider
    return summarise(np.concatenate(differences), MAX_DIFFERENCE[precision], path) | counted | loss


def summarise(differences: NDArray[np.float32], limit: float, path: Path) -> dict[str, Any]:
    """Give the figures of all values' differences, shape `(values,)`.

    Raises:
        RunError: more of them than ties explain are beyond the limit, or not a number.
    """
    largest = float(np.abs(differences).max())
    # Not `> limit`: what is no number is beyond every limit.
    beyond = float(np.mean(~(np.abs(differences) <= limit)))
    if beyond > MAX_SHARE_BEYOND or not np.isfinite(largest):
        raise RunError(
            f"{path}: expected the graph to give PyTorch's values within {limit}, found {100 * beyond:.3g}% of them "
            f"beyond and a largest difference of {largest:.3g}; the export is wrong, nothing was written"
        )
    squared = float(np.mean(np.square(differences, dtype=np.float64)))
    psnr_db = -10 * float(np.log10(squared)) if squared else None
    return {"max_abs_difference": largest, "share_beyond": beyond, "limit": limit, "psnr_db": psnr_db}


def half_loss(
    expected: NDArray[np.float32], found: NDArray[np.float32], high: NDArray[np.float32], path: Path
) -> dict[str, Any]:
    """Give what a half-precision file loses against PyTorch's float32, beside the targets.

    Args:
        expected: PyTorch's slices `(N, 1, H, W)`.
        found: the file's, of the same shape.
        high: the targets, of the same shape, in [0, 1].
        path: the file.

    Raises:
        RunError: it loses more than 0.05 dB.
    """
    before, after = (float(np.mean(psnr_slice_db(restored, high))) for restored in (expected, found))
    if not before - after <= MAX_LOSS_DB:
        raise RunError(
            f"{path}: expected half precision to lose at most {MAX_LOSS_DB} dB, found PSNR {after:.3f} dB where "
            f"PyTorch in float32 has {before:.3f} dB; nothing was written, export with --precision fp32"
        )
    return {"psnr_slice_float32_db": before, "psnr_slice_db": after, "psnr_lost_db": before - after}


def psnr_slice_db(restored: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the PSNR of each slice, `(N,)`, of `(N, 1, H, W)` clipped to [0, 1] against targets of the same shape."""
    squares = np.square(np.clip(restored, 0, 1) - high, dtype=np.float64)
    return -10 * np.log10(np.maximum(squares.mean(axis=(1, 2, 3)), 1e-12))


def draw(rows: int, columns: int) -> NDArray[np.float32]:
    """Draw an image `(rows, columns)` in [0, 1] that no flip, shift or exchange leaves as it is: rings on a ramp."""
    down, across = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    rings = np.cos(40 * ((down - 0.4) ** 2 + (across - 0.3) ** 2))
    return ((0.5 + 0.5 * rings) * (0.2 + 0.5 * down + 0.3 * across)).astype(np.float32)
