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

from upfield.distributed.augment import augment_pair
from upfield.distributed.configuration import AugmentConfig
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

    def split(self, size: int) -> list["Batch"]:
        """Cut the batch into parts of `size` samples, the last of which may be smaller."""
        tensors = (tensor.split(size) for tensor in (self.low, self.high, self.samples))
        return [Batch(*parts) for parts in zip(*tensors, strict=True)]

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
    augment: AugmentConfig
    """How pairs are changed."""
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
        batch = read_batch(self.split, self.samples_at(step))
        if self.sequencing.augment == AugmentConfig():
            return batch
        return self._augmented(batch, step // self.steps_per_epoch)

    def _augmented(self, batch: Batch, epoch: int) -> Batch:
        keys = ((self.sequencing.seed, epoch, sample) for sample in batch.samples.tolist())
        pairs = zip(batch.low.numpy(), batch.high.numpy(), keys, strict=True)
        changed = [augment_pair(low, high, self.sequencing.augment, key) for low, high, key in pairs]
        low, high = (torch.from_numpy(np.stack(images)) for images in zip(*changed, strict=True))
        return Batch(low, high, batch.samples)


class _Steps(Sampler[int]):
    def __init__(self, steps: range) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def training_loader(
    batches: TrainingBatches, steps: range, num_workers: int, prefetch: int, pin_memory: bool
) -> "DataLoader[Batch]":
    """Give the batches of global steps `steps`, across epochs without a pause between them.

    Every rank must make one with the same steps.

    Args:
        batches: this process's.
        steps: global steps, from 0.
        num_workers: processes that read; 0 reads in this one.
        prefetch: batches that each of them reads ahead.
        pin_memory: whether batches lie in page-locked memory, for copies to a GPU.
    """
    return DataLoader(
        batches,
        sampler=_Steps(steps),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        **_worker_options(num_workers, prefetch),
    )


def every_sample(split: ShardSplit, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
    """Give this process's part of all samples of a split, in stored order: over all ranks each sample once."""
    mine = np.arange(split.num_samples)[rank::world_size]
    for start in range(0, len(mine), batch_size):
        yield read_batch(split, mine[start : start + batch_size])


def every_sample_in_step(
    split: ShardSplit, batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Give the same as `every_sample`, as many batches of equal size to every rank, which may so work collectively.

    Yields:
        A batch, and `(N,)` bool: False for samples that fill the end up, which another batch holds.
    """
    rounds = -(-split.num_samples // (batch_size * world_size))
    places = np.arange(rounds * batch_size) * world_size + rank
    for chunk in places.reshape(rounds, batch_size):
        yield read_batch(split, np.minimum(chunk, split.num_samples - 1)), torch.from_numpy(chunk < split.num_samples)


def _worker_options(num_workers: int, prefetch: int) -> dict[str, Any]:
    if not num_workers:
        return {}
    return {"persistent_workers": True, "prefetch_factor": prefetch, "worker_init_fn": _leave_signals_to_the_rank}


def _leave_signals_to_the_rank(_: int) -> None:
    """Ignore what asks a run to stop: sent to a whole process group, it must end the rank's step, not its loader."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
