"""Batches of a shard set, read by offset straight into the batch's buffer."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from upfield.distributed.order import epoch_order, rank_share
from upfield.distributed.stopping import STOP_SIGNALS
from upfield.sharding.shardset import ShardSplit


@dataclass
class Batch:
    """Samples of one process at one step."""

    low: Tensor
    """`(N, 1 + 2*context, H, W)` float16 in [0, 1]."""
    high: Tensor
    """`(N, 1, H, W)` float16 in [0, 1]."""
    samples: Tensor
    """`(N,)` int64, sample numbers in their split."""

    def pin_memory(self) -> "Batch":
        """Move to page-locked memory, from which copies to a GPU need not wait."""
        return Batch(self.low.pin_memory(), self.high.pin_memory(), self.samples.pin_memory())


def read_batch(split: ShardSplit, samples: NDArray[np.int64] | Sequence[int]) -> Batch:
    """Read samples `(N,)` by number into one batch."""
    low = torch.empty((len(samples), *split.low_shape), dtype=torch.float16)
    high = torch.empty((len(samples), *split.high_shape), dtype=torch.float16)
    split.read_into([int(sample) for sample in samples], low.numpy(), high.numpy())
    return Batch(low, high, torch.as_tensor(np.asarray(samples, dtype=np.int64)))


@dataclass(frozen=True)
class Sequencing:
    """Everything that decides which samples a step consumes."""

    seed: int
    """The run's seed."""
    batch_size: int
    """Of the global batch."""
    window_shards: int
    """Shards that are mixed."""
    rank: int
    """This process."""
    world_size: int
    """Number of processes."""


class TrainingBatches(Dataset[Batch]):
    """This process's batch at any global step. The step carries the epoch: workers need no state, none can age."""

    def __init__(self, split: ShardSplit, sequencing: Sequencing) -> None:
        """Make the dataset over `split`."""
        self.split = split
        self.sequencing = sequencing
        self.steps_per_epoch = split.num_samples // sequencing.batch_size
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def samples_at(self, step: int) -> NDArray[np.int64]:
        """Give the sample numbers `(batch_size / world_size,)` of this process at global step `step`, from 0."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        s = self.sequencing
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = epoch_order(s.seed, epoch, self.split.shard_sizes, s.window_shards)
        return rank_share(self._order, step_in_epoch, s.batch_size, s.rank, s.world_size)

    def __getitem__(self, step: int) -> Batch:
        """Read this process's batch at global step `step`."""
        return read_batch(self.split, self.samples_at(step))


class _Steps(Sampler[int]):
    def __init__(self, steps: range) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def training_loader(batches: TrainingBatches, steps: range, num_workers: int, pin_memory: bool) -> "DataLoader[Batch]":
    """Give the batches of global steps `steps`, across epochs without a pause between them.

    Every rank must make one with the same steps.
    """
    return DataLoader(
        batches,
        sampler=_Steps(steps),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        **_worker_options(num_workers),
    )


def every_sample(split: ShardSplit, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
    """Give this process's part of all samples of a split, in stored order: over all ranks each sample once."""
    mine = np.arange(split.num_samples)[rank::world_size]
    for start in range(0, len(mine), batch_size):
        yield read_batch(split, mine[start : start + batch_size])


def _worker_options(num_workers: int) -> dict[str, Any]:
    if not num_workers:
        return {}
    return {"persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _leave_signals_to_the_rank}


def _leave_signals_to_the_rank(_: int) -> None:
    """Ignore what asks a run to stop: sent to a whole process group, it must end the rank's step, not its loader."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
