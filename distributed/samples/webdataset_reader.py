"""The reader `webdataset`: batches from streams of shards, in an order that depends on the number of processes.

The streams divide the shards of an epoch, but all of them yield equally many samples, so that every process takes
equally many steps. A stream whose shards hold more samples leaves out the rest, and one whose shards hold fewer begins
its shards again. Another epoch divides the shards in another way.
"""

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.common.errors import InputError
from upfield.common.tables import counted
from upfield.common.tasks import results_in_order
from upfield.distributed.configuration import AugmentConfig, DataConfig
from upfield.distributed.samples.augment import augment_pair
from upfield.distributed.samples.reader import (
    Allocator,
    Batch,
    BatchPlan,
    choose_memory,
    count_readers,
    stack_pairs,
)
from upfield.distributed.samples.sample_classes import find_classes, shares_of
from upfield.distributed.samples.splits import VALIDATION_SHARDS, sum_largest
from upfield.distributed.samples.webdataset_stream import (
    NUMBER,
    Item,
    StreamPlace,
    StreamSeed,
    decode_sample,
    shuffle_shards,
    stream_samples,
)
from upfield.sharding.shardset.remote.remote_files import RemoteFiles
from upfield.sharding.shardset.shard_split import ShardSplit

# A stream reads one shard, and downloads the next one.
SHARDS_AT_ONCE = 2


class StreamedBatches:
    """Reads this process's batches from streams. An epoch has as many steps as with the exact reader."""

    def __init__(self, split: ShardSplit, plan: BatchPlan, buffer_size: int) -> None:
        """Store the arguments. This reads no data.

        Args:
            split: training split.
            plan: settings that determine the batches; those of the exact order have no effect.
            buffer_size: number of samples in the buffer of each stream.
        """
        self.split = split
        self.plan = plan
        self.buffer_size = buffer_size
        self.classes = find_classes(split, plan.mix)
        """Classes whose shares are logged."""
        self.steps_per_epoch = split.num_samples // plan.batch_size
        self.share = plan.batch_size // plan.world_size

    def shares(self, samples: NDArray[np.int64]) -> dict[str, float]:
        """Compute the share of each class among samples `(N,)`, by name for the log."""
        return shares_of(self.classes, samples)

    def load(self, steps: range, num_workers: int, prefetch: int, pin_memory: bool) -> Generator[Batch, None, None]:
        """Yield the batches of the global steps `steps`. Every rank must use the same steps.

        Args:
            steps: global steps, from 0.
            num_workers: number of threads that read in advance, each from a stream of its own, in turn. With 0 threads,
                the caller reads one stream.
            prefetch: number of batches that each thread reads in advance.
            pin_memory: whether to read into page-locked memory, from which copies to a GPU run asynchronously.
        """
        memory = choose_memory(pin_memory)
        streams = [_Stream(self, steps, place, memory) for place in self._places(max(1, num_workers))]
        if num_workers:
            return _read_in_turn(streams, steps, num_workers * prefetch, self.split.source.stop)
        return streams[0].batches()

    def _places(self, num_threads: int) -> list[StreamPlace]:
        rank, world_size = self.plan.rank, self.plan.world_size
        return [StreamPlace(rank, world_size, thread, num_threads) for thread in range(num_threads)]

    def describe(self, num_workers: int) -> str:
        """Say how the shards are divided, and what an epoch leaves out and repeats."""
        num_threads = max(1, num_workers)
        left_out, repeated = self.count_unequal(0, num_threads)
        return (
            f"the webdataset reader divides {counted(len(self.split.entries), 'shard')} among {self.plan.world_size} x "
            f"{num_threads} streams; the first epoch leaves out {left_out} of {self.split.num_samples} samples and "
            f"repeats {repeated}"
        )

    def count_unequal(self, epoch: int, num_threads: int) -> tuple[int, int]:
        """Count the samples that all streams together leave out and repeat in a whole epoch."""
        part = EpochPart(epoch, 0, self.steps_per_epoch, 0)
        order = shuffle_shards(len(self.split.entries), part.seed(self.plan.seed))
        left_out = repeated = 0
        for rank in range(self.plan.world_size):
            for thread in range(num_threads):
                own = self.split.shard_sizes[order[rank :: self.plan.world_size][thread::num_threads]].sum()
                excess = int(own) - part.num_batches(thread, num_threads) * self.share
                left_out += max(0, excess)
                repeated += max(0, -excess)
        return left_out, repeated


@dataclass(frozen=True)
class EpochPart:
    """The steps of one epoch that a run takes."""

    epoch: int
    """Number of the epoch, from 0."""
    first_step: int
    """First of these steps, counted from the beginning of the epoch."""
    num_steps: int
    """Number of these steps."""
    num_before: int
    """Number of steps that the run has taken since it was started or resumed."""

    def seed(self, seed: int) -> StreamSeed:
        """Return the seed of the streams."""
        return StreamSeed(seed, self.epoch, self.first_step)

    def num_batches(self, thread: int, num_threads: int) -> int:
        """Return the number of batches that a thread yields. The threads take turns from the first step of the run."""
        first = (thread - self.num_before) % num_threads
        return len(range(first, self.num_steps, num_threads))


def _epochs(steps: range, steps_per_epoch: int) -> list[EpochPart]:
    parts: list[EpochPart] = []
    step = steps.start
    while step < steps.stop:
        epoch, first = divmod(step, steps_per_epoch)
        end = min(steps.stop, (epoch + 1) * steps_per_epoch)
        parts.append(EpochPart(epoch, first, end - step, step - steps.start))
        step = end
    return parts


class _Stream:
    """The batches of one thread."""

    def __init__(self, batches: StreamedBatches, steps: range, place: StreamPlace, memory: Allocator) -> None:
        self._owner = batches
        self._steps = steps
        self._place = place
        self._memory = memory

    def batches(self) -> Generator[Batch, None, None]:
        """Yield the batches of this thread, epoch after epoch."""
        owner, place = self._owner, self._place
        for part in _epochs(self._steps, owner.steps_per_epoch):
            count = part.num_batches(place.thread, place.num_threads)
            if count:
                yield from self._epoch(part, count)

    def _epoch(self, part: EpochPart, count: int) -> Iterator[Batch]:
        from webdataset.filters import batched

        owner = self._owner
        samples = stream_samples(
            owner.split, part.seed(owner.plan.seed), self._place, count * owner.share, owner.buffer_size
        )
        collate = batched(owner.share, collation_fn=lambda items: self._collate(items, part.epoch), partial=False)
        return collate(samples)

    def _collate(self, items: list[Item], epoch: int) -> Batch:
        owner = self._owner
        numbers = [item[NUMBER] for item in items]
        pairs = [decode_sample(item, owner.split) for item in items]
        if (config := owner.plan.augment) != AugmentConfig():
            keys = [(owner.plan.seed, epoch, number) for number in numbers]
            pairs = [augment_pair(low, high, config, key) for (low, high), key in zip(pairs, keys, strict=True)]
        return stack_pairs(pairs, torch.tensor(numbers), self._memory)


def _read_in_turn(
    streams: list[_Stream], steps: range, num_ahead: int, stop: Callable[[], None]
) -> Generator[Batch, None, None]:
    """Yield a batch of each stream in turn. Each stream has a thread of its own; `stop` cancels what it waits for."""
    threads = [ThreadPoolExecutor(1, "stream") for _ in streams]
    batches = [stream.batches() for stream in streams]
    turns = (number % len(streams) for number in range(len(steps)))
    try:
        yield from results_in_order((threads[turn].submit(next, batches[turn]) for turn in turns), num_ahead)
    finally:
        stop()
        for thread, stream in zip(threads, batches, strict=True):
            thread.shutdown(cancel_futures=True)
            stream.close()


def refuse_unfit_streams(data: DataConfig, split: ShardSplit, world_size: int) -> None:
    """Check that each stream has a shard, and that the cache can hold the shards that are downloaded at once.

    Args:
        data: part `data` of the configuration.
        split: training split.
        world_size: number of processes.

    Raises:
        InputError: there are fewer shards than streams, or the cache is too small.
    """
    num_threads = max(1, count_readers(data, torch.cuda.is_available()))
    if len(split.entries) < world_size * num_threads:
        raise InputError(
            f"{split.root}: the webdataset reader needs at least {world_size * num_threads} training shards, one for "
            f"each of {world_size} processes x {num_threads} threads (data.num_workers), found {len(split.entries)}. "
            "Use fewer processes or threads, build the set with smaller shards, or choose --data.reader exact."
        )
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    num_shards, validation = SHARDS_AT_ONCE * num_threads * num_ranks, split.manifest.shards("val")
    num_validation = min(VALIDATION_SHARDS * num_ranks, len(validation))
    needed = sum_largest(split.entries, num_shards) + sum_largest(validation, num_validation)
    if isinstance(split.source, RemoteFiles) and needed > data.cache_bytes:
        raise InputError(
            f"data.cache_bytes: expected at least {needed}, for {num_shards} training shards and {num_validation} "
            f"validation shards, found {data.cache_bytes}. Raise --data.cache_bytes."
        )
