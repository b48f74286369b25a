"""Metrics of every slice of a split, the model beside cubic interpolation, and their statistics."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.distributed.reader import every_sample
from upfield.export.scan import Restorer
from upfield.model.quality import METRICS
from upfield.sharding.errors import RunError
from upfield.sharding.shardset import ShardSplit

METHODS = ("cubic", "model")


@dataclass(frozen=True)
class Measured:
    """One value per slice, metric and method."""

    keys: list[str]
    """N sample keys, in stored order."""
    values: dict[str, dict[str, NDArray[np.float64]]]
    """method -> metric -> `(N,)`."""


def measure(
    restorer: Restorer, split: ShardSplit, batch_size: int, done: Callable[[int], None] = lambda _: None
) -> Measured:
    """Restore every sample of a split once and measure it.

    Args:
        restorer: the model.
        split: the samples.
        batch_size: slices restored at once.
        done: called with the number of slices after each batch.

    Raises:
        RunError: the model gives NaN.
    """
    context = split.manifest.context
    collected: dict[str, dict[str, list[torch.Tensor]]] = {
        method: {metric: [] for metric in METRICS} for method in METHODS
    }
    for batch in every_sample(split, batch_size, rank=0, world_size=1):
        low, high = batch.low.float(), batch.high.float()
        images = {
            # The low-field channel is the cubic interpolation of the scan: nothing is left to compute.
            "cubic": low[:, context : context + 1],
            "model": torch.from_numpy(restorer.restore(low.numpy())),
        }
        if images["model"].isnan().any():
            names = ", ".join(split.key(int(sample)) for sample in batch.samples)
            raise RunError(f"expected finite slices from the model, found NaN among those of {names}; train it anew")
        for method, image in images.items():
            for metric, function in METRICS.items():
                collected[method][metric].append(function(image, high))
        done(len(low))
    keys = [split.key(sample) for sample in range(split.num_samples)]
    values = {
        method: {metric: torch.cat(parts).double().numpy() for metric, parts in by_metric.items()}
        for method, by_metric in collected.items()
    }
    return Measured(keys, values)


def statistics(values: NDArray[np.float64]) -> dict[str, Any]:
    """Summarise `values` `(N,)`; infinite ones (a slice without any error has no PSNR) are left out and counted."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return dict.fromkeys(("mean", "median", "std", "min", "max")) | {"count": 0, "infinite": len(values)}
    return {
        "mean": float(finite.mean()),
        "median": float(np.median(finite)),
        "std": float(finite.std()),
        "min": float(finite.min()),
        "max": float(finite.max()),
        "count": len(finite),
        "infinite": len(values) - len(finite),
    }


def slices_csv(measured: Measured) -> str:
    """Give one line per slice: its key, then each metric of each method."""
    columns = [(method, metric) for method in METHODS for metric in METRICS]
    lines = [",".join(["key", *(f"{method}_{metric}" for method, metric in columns)])]
    for row, key in enumerate(measured.keys):
        lines.append(",".join([key, *(f"{measured.values[method][metric][row]:.6g}" for method, metric in columns)]))
    return "\n".join(lines) + "\n"


def read_slices(path: Path) -> Measured:
    """Read back what `slices_csv` gave."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    values = {
        method: {metric: np.array([float(row[f"{method}_{metric}"]) for row in rows]) for metric in METRICS}
        for method in METHODS
    }
    return Measured([row["key"] for row in rows], values)
