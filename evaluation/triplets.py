"""Slices to look at: the best, the median and the worst of an evaluation."""

import numpy as np

from upfield.evaluation.consistency import LowFieldSampling
from upfield.evaluation.measure import CUBIC, MODEL
from upfield.evaluation.reports.figures import Triplet
from upfield.evaluation.summary import Evaluated
from upfield.evaluation.volumes import read_pair
from upfield.export.scans.restoration import Restorer, restore_volume
from upfield.sharding.previews.selection import VolumePair, group_volumes
from upfield.sharding.shardset.reading import ShardSplit

# Slices of background are easy; a good figure there says nothing.
RANKED_BY = "psnr_slice_foreground"
SHOWN = ("psnr_slice", "ssim_slice")


def pick_triplets(evaluated: Evaluated, split: ShardSplit, restorer: Restorer) -> list[Triplet]:
    """Restore again the slices of best, median and worst PSNR among those with enough of the head in them.

    Args:
        evaluated: every slice of the split.
        split: where they are.
        restorer: the model that was measured.

    Returns:
        Three, or none where no slice has a finite PSNR.
    """
    psnr = evaluated.values(MODEL, RANKED_BY)
    ranked = sorted(np.flatnonzero(np.isfinite(psnr)).tolist(), key=lambda i: psnr[i])
    if not ranked:
        return []
    chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    volumes = group_volumes(split)
    return [_triplet(f"{label}: ", number, evaluated, split, volumes, restorer) for label, number in chosen.items()]


def _triplet(
    label: str, number: int, evaluated: Evaluated, split: ShardSplit, volumes: list[VolumePair], restorer: Restorer
) -> Triplet:
    key = evaluated.keys[number]
    listed = next(pair for pair in volumes if key in map(str, pair.keys))
    pair = read_pair(split, listed)
    at = list(map(str, pair.keys)).index(key)
    sampling = LowFieldSampling.of(split.manifest, listed.first.cohort, split.record(listed.samples[at]))
    values = {
        f"{'cubic_' if method == CUBIC else ''}{metric}": float(evaluated.values(method, metric)[number])
        for method in (CUBIC, MODEL)
        for metric in SHOWN
    }
    cubic = pair.cubic
    restored = restore_volume(pair.low[at : at + 1], restorer, 1)[0]
    return Triplet(f"{label}{key}", sampling.scan(cubic)[at], cubic[at], restored, pair.high[at], values)
