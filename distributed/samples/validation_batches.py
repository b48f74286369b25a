"""Batches of a whole split in stored order. Each process reads a part that is its own, ahead of its use."""

from collections.abc import Generator
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upfield.distributed.samples.fetcher import fetch_shards
from upfield.distributed.samples.look_ahead import request_ahead
from upfield.distributed.samples.reader import (
    Batch,
    choose_memory,
    read_ahead,
    read_batch,
)
from upfield.distributed.samples.splits import VALIDATION_SHARDS
from upfield.sharding.shardset.shard_split import ShardSplit


def deal_parts(num_samples: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Deal a split to the processes in parts that follow one another, so that each shard is read on one node.

    Args:
        num_samples: number of samples in the split, at least 1.
        batch_size: number of samples in each batch.
        rank: number of the process.
        world_size: number of processes.

    Returns:
        `(batches, batch_size)` sample numbers of the process, equally many on each. A number beyond the end of the part
        fills up a batch.
    """
    start = num_samples * rank // world_size
    most = -(-num_samples // world_size)
    return start + np.arange(-(-most // batch_size) * batch_size).reshape(-1, batch_size)


class StoredOrder:
    """Computes the shards that must be in the cache at each batch, if samples are read in stored order."""

    def __init__(self, batches: NDArray[np.int64], shard_starts: NDArray[np.int64]) -> None:
        """Store the batches.

        Args:
            batches: `(batches, batch_size)` sample numbers, in ascending order.
            shard_starts: `(shards + 1,)` number of the first sample of each shard, and the number of all samples.
        """
        self.stop = len(batches)
        self._shards = shard_starts.searchsorted(batches[:, [0, -1]], side="right") - 1

    def windows_at(self, step: int) -> list[NDArray[np.int64]]:
        """Return the number `(1,)` of the shard that batch `step` begins in, and that of the next one."""
        first, last = int(self._shards[step, 0]), int(self._shards[-1, -1])
        return [np.array([shard]) for shard in range(first, min(first + VALIDATION_SHARDS, last + 1))]


def choose_spread(split: ShardSplit, count: int | None) -> NDArray[np.int64]:
    """Choose samples that are spread over the scans of a split and over the slices of each scan.

    Args:
        split: split to choose from.
        count: number of samples; None or a number beyond the size of the split chooses all.

    Returns:
        `(samples,)` sample numbers in stored order, always the same for the same split and `count`.
    """
    if count is None or count >= split.num_samples:
        return np.arange(split.num_samples)
    by_scan = np.lexsort((split.index.slices, split.unit_numbers))
    places = (np.arange(count) + 0.5) * split.num_samples / count
    return np.sort(by_scan[places.astype(np.int64)])


def validation_loader(
    split: ShardSplit,
    batch_size: int,
    rank: int,
    world_size: int,
    num_workers: int,
    prefetch: int,
    pin_memory: bool,
    samples: NDArray[np.int64] | None = None,
) -> Generator[tuple[Batch, Tensor], None, None]:
    """Yield the samples of a process's part in batches of equal size, equally many on every rank.

    The ranks can therefore make a collective call for each batch. Together, they read each sample once, and the samples
    of all ranks in order of the ranks are in stored order.

    Args:
        split: split to read, which is not empty.
        batch_size: number of samples in each batch.
        rank: number of the process.
        world_size: number of processes.
        num_workers: number of threads that read in advance.
        prefetch: number of batches that each thread reads in advance.
        pin_memory: whether to read into page-locked memory, from which copies to a GPU run asynchronously.
        samples: `(samples,)` sample numbers to read, in stored order; None for the whole split.

    Yields:
        A batch, and a mask `(N,)` bool. The mask is False for samples that only fill up the batch and are counted in
        another batch.

    Raises:
        ShardSetError: a shard is missing or truncated.
        FetchError: a remote shard could not be fetched.
    """
    samples = np.arange(split.num_samples) if samples is None else samples
    places = deal_parts(len(samples), batch_size, rank, world_size)
    end = len(samples) * (rank + 1) // world_size
    # A process without samples of its own reads a neighbour's.
    batches = samples[np.minimum(places, max(end - 1, 0))]
    memory = choose_memory(pin_memory)

    def read(own: ShardSplit, samples: NDArray[np.int64]) -> Batch:
        return read_batch(own, samples, memory)

    loader = read_ahead(split, request_ahead(split, batches, prefetch), read, num_workers, prefetch)
    schedule = StoredOrder(batches, split.shard_starts)
    with closing(fetch_shards(loader, split, schedule, range(len(batches)))) as fetched:
        for batch, own in zip(fetched, places < end, strict=True):
            yield batch, torch.from_numpy(own)
