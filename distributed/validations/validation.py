"""Validation: image quality of the model and of cubic interpolation on a split, computed by all processes together."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from upfield.common.errors import DivergedError
from upfield.distributed.samples.validation_batches import validation_loader
from upfield.model.quality import METRICS
from upfield.sharding.shardset.shard_split import ShardSplit

NAMES = [*METRICS, *(f"cubic_{name}" for name in METRICS)]
# Number of batches after which all ranks agree whether they stop. A GPU would have to wait for the answer.
BETWEEN_QUESTIONS, BETWEEN_QUESTIONS_ON_GPU = 1, 16


class ValidationStoppedError(Exception):
    """All ranks have agreed to stop a validation before its end."""


@dataclass(frozen=True)
class Validation:
    """The result of a validation."""

    figures: dict[str, float | int]
    """Statistics over all slices by name. The mean has the name of the metric. The other statistics have the suffixes
    `_median`, `_std`, `_min` and `_max`. Names with the prefix `cubic_` refer to the interpolated input, other names to
    the model. PSNR excludes slices without any error, and `perfect_slices` counts these slices."""
    pictures: Tensor
    """`(N, 1, H, 3*W)`: low field, restored and high field side by side, in [0, 1]."""


@torch.no_grad()
def validate(
    accelerator: Accelerator,
    restore: Callable[[Tensor], Tensor],
    split: ShardSplit,
    batch_size: int,
    num_pictures: int = 0,
    num_workers: int = 0,
    prefetch: int = 1,
    samples: NDArray[np.int64] | None = None,
    advance: Callable[[int], None] = lambda _: None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Validation:
    """Measure the image quality of a network on a split or on a part of it. Collective: ALL ranks call it.

    Args:
        accelerator: process group and precision.
        restore: network in evaluation mode, which maps `(N, 1 + 2*context, H, W)` in [0, 1] to `(N, 1, H, W)`.
        split: split to measure on.
        batch_size: number of slices per batch on each process.
        num_pictures: number of slices to return as pictures, spread evenly over the split.
        num_workers: number of threads per process that read batches in advance.
        prefetch: number of batches that each thread reads in advance.
        samples: `(samples,)` sample numbers to measure on, in stored order; None for the whole split.
        advance: function that is called with the number of slices of each batch.
        is_stopping: function that all ranks call together and that returns whether they stop.

    Raises:
        DivergedError: the network returned NaN.
        ValidationStoppedError: `is_stopping` returned true.
    """
    samples = np.arange(split.num_samples) if samples is None else samples
    values: list[Tensor] = []
    pictures: list[Tensor] = []
    context, rank, world_size = split.manifest.context, accelerator.process_index, accelerator.num_processes
    shown = torch.from_numpy(samples)[spread_evenly(len(samples), num_pictures)]
    on_gpu = accelerator.device.type == "cuda"
    between = BETWEEN_QUESTIONS_ON_GPU if on_gpu else BETWEEN_QUESTIONS
    loader = validation_loader(split, batch_size, rank, world_size, num_workers, prefetch, on_gpu, samples)
    for number, (batch, valid) in enumerate(loader):
        if number % between == 0 and is_stopping():
            loader.close()
            raise ValidationStoppedError
        low, high = batch.low.to(accelerator.device).float(), batch.high.to(accelerator.device).float()
        with accelerator.autocast():
            restored = restore(low).float().clamp(0, 1)
        # The low-field channel is the cubic interpolation of the scan.
        centre = low[:, context : context + 1]
        rows = [metric(image, high) for image in (restored, centre) for metric in METRICS.values()]
        values.append(torch.stack([valid.to(high), *rows]))
        chosen = valid & torch.isin(batch.samples, shown)
        pictures.append(torch.cat([centre, restored, high], dim=-1)[chosen.to(high.device)].cpu())
        advance(int(valid.sum()))
    gathered = accelerator.gather(torch.cat(values, dim=1).T.contiguous())
    assert isinstance(gathered, Tensor)
    # The slices of all ranks are in stored order, so their sums do not depend on the number of processes.
    figures = summarise(gathered.T.cpu().double())
    return Validation(figures, torch.cat(gather_object([torch.cat(pictures)])) if num_pictures else pictures[0][:0])


def spread_evenly(num_samples: int, count: int) -> Tensor:
    """Return `(count,)` sample numbers, spread evenly over a split."""
    return torch.linspace(0, num_samples - 1, count + 2).long()[1:-1]


def summarise(columns: Tensor) -> dict[str, float | int]:
    """Compute the statistics over all slices.

    Args:
        columns: `(1 + metrics, N)` float64, one column per slice. The first row is 1 for slices that count and 0 for
            others. The other rows are the metrics in the order of `NAMES`.

    Raises:
        DivergedError: the network returned NaN.
    """
    values = columns[1:, columns[0] > 0]
    if num_broken := int(values[0].isnan().sum()):
        raise DivergedError(
            f"validation: the network returned NaN for {num_broken} of {values.shape[1]} slices, so the weights have "
            "diverged. Resume from an earlier checkpoint with a lower --optim.lr."
        )
    figures: dict[str, float | int] = {}
    for name, row in zip(NAMES, values, strict=True):
        figures |= _statistics(name, row[row.isfinite()])
    perfect = int(values.shape[1] - values[0].isfinite().sum())
    return figures | {"slices": values.shape[1], "perfect_slices": perfect}


def _statistics(name: str, row: Tensor) -> dict[str, float]:
    if not len(row):
        return {name: float("nan")}
    spread = {"median": row.quantile(0.5), "std": row.std(correction=0), "min": row.min(), "max": row.max()}
    return {name: row.mean().item()} | {f"{name}_{key}": value.item() for key, value in spread.items()}
