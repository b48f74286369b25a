"""Choose example slices for a report: the best, the median and the worst of an evaluation."""

import numpy as np

from upfield.evaluation.consistency import LowFieldSampling
from upfield.evaluation.measurements import CUBIC, MODEL, ExampleSlice
from upfield.evaluation.stacked_pairs import read_pair
from upfield.evaluation.summary import EvaluationResult
from upfield.export.scans.restoration import Restorer, restore_volume
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import VolumePair, group_volumes

# Slices without much of the head are easy to restore, so a high PSNR there says nothing.
RANKED_BY = "psnr_slice_foreground"
SHOWN = ("psnr_slice", "ssim_slice")


def choose_example_slices(result: EvaluationResult, split: ShardSplit, restorer: Restorer) -> list[ExampleSlice]:
    """Choose the slices with the best, median and worst PSNR, and restore them again.

    Only slices with enough of the head are considered.

    Args:
        result: measurements of every slice of the split.
        split: the split that was measured.
        restorer: the model that was measured.

    Returns:
        Three slices, or none if no slice has a finite PSNR.
    """
    psnr = result.values(MODEL, RANKED_BY)
    ranked = sorted(np.flatnonzero(np.isfinite(psnr)).tolist(), key=lambda i: psnr[i])
    if not ranked:
        return []
    chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    volumes = group_volumes(split)
    return [_example_slice(f"{label}: ", number, result, split, volumes, restorer) for label, number in chosen.items()]


def _example_slice(
    label: str, number: int, result: EvaluationResult, split: ShardSplit, volumes: list[VolumePair], restorer: Restorer
) -> ExampleSlice:
    key = result.keys[number]
    listed = next(pair for pair in volumes if key in map(str, pair.keys))
    pair = read_pair(split, listed)
    at = list(map(str, pair.keys)).index(key)
    sampling = LowFieldSampling.of(split.manifest, listed.first.cohort, split.record(listed.samples[at]))
    values = {
        f"{'cubic_' if method == CUBIC else ''}{metric}": float(result.values(method, metric)[number])
        for method in (CUBIC, MODEL)
        for metric in SHOWN
    }
    cubic = pair.cubic
    restored = restore_volume(pair.with_neighbours(restorer.context, slice(at, at + 1)), restorer, 1)[0]
    return ExampleSlice(f"{label}{key}", sampling.scan_blocks(cubic)[at], cubic[at], restored, pair.high[at], values)
