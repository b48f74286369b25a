"""Slices to look at: the best, the median and the worst of an evaluation."""

import numpy as np

from upfield.distributed.reader import read_batch
from upfield.evaluation.figures import Triplet
from upfield.evaluation.measure import METHODS, Measured
from upfield.export.scan import Restorer
from upfield.sharding.samplekey import SampleKey
from upfield.sharding.shardset import ShardSplit

# The outermost slices hold background; a good PSNR there says nothing.
INNER = (0.25, 0.75)
SHOWN = ("psnr_slice", "ssim_slice")


def pick_triplets(measured: Measured, split: ShardSplit, restorer: Restorer) -> list[Triplet]:
    """Restore again the slices of best, median and worst PSNR among those with anatomy in them.

    Args:
        measured: every slice of the split.
        split: where they are.
        restorer: the model that was measured.
    """
    psnr = measured.values["model"]["psnr_slice"]
    inner = [i for i, key in enumerate(measured.keys) if INNER[0] <= _position(key, split) <= INNER[1]]
    ranked = sorted((i for i in inner or range(len(psnr)) if np.isfinite(psnr[i])), key=lambda i: psnr[i])
    if not ranked:
        return []
    chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    batch = read_batch(split, list(chosen.values()))
    low, high = batch.low.float().numpy(), batch.high.float().numpy()
    restored = restorer.restore(low)
    triplets: list[Triplet] = []
    for row, (label, sample) in enumerate(chosen.items()):
        values = {
            f"{'cubic_' if method == 'cubic' else ''}{metric}": float(measured.values[method][metric][sample])
            for method in METHODS
            for metric in SHOWN
        }
        centre = low[row, split.manifest.context]
        triplets.append(Triplet(f"{label}: {measured.keys[sample]}", centre, restored[row, 0], high[row, 0], values))
    return triplets


def _position(key: str, split: ShardSplit) -> float:
    """Give where a slice lies between the left (0) and the right (1) end of its volume."""
    num_slices = split.manifest.tree["config"]["geometry"]["high_shape"][0]
    return SampleKey.parse(key).x / max(num_slices - 1, 1)
