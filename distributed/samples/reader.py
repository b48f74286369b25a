"""Batches of a shard set, read by offset straight into the batch's buffer.

The reader is written by hand because the libraries for this purpose are slower. benchmarks/tables/reader.txt has these
samples/s, for batches of 4 and of 16 samples (2,048 samples of the real size in the page cache, 2 cores):

    workers                              0                     2
    this reader                 61,611  80,366        42,634  53,317
    WebDataset                   5,733   5,443         2,472   4,473
    MosaicML Streaming           3,501   4,999         2,236   4,637
    the same, tuned             22,359  25,380         3,284   5,600
    LitData                      9,350   9,405         2,744   5,378
    plain read(), 1 MiB a call     116,077
"""

import copy
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upfield.common.tasks import results_in_order
from upfield.distributed.configuration import AugmentConfig, DataConfig, MixConfig
from upfield.distributed.samples.augment import augment_pair
from upfield.distributed.samples.look_ahead import request_ahead
from upfield.distributed.samples.order import SampleOrder
from upfield.distributed.samples.sample_classes import choose_mixture, find_classes, shares_of
from upfield.sharding.shardset.shard_split import ShardSplit

Job = TypeVar("Job")
# A function that returns float16 memory of a given shape.
Allocator = Callable[[tuple[int, ...]], Tensor]


@dataclass
class Batch:
    """Samples of one process at one step."""

    low: Tensor
    """`(N, 1 + 2*context, H, W)` float16 in [0, 1]."""
    high: Tensor
    """`(N, 1, H, W)` float16 in [0, 1]."""
    samples: Tensor
    """`(N,)` int64, sample numbers in the split."""

    def split(self, size: int) -> list["Batch"]:
        """Split the batch into parts of `size` samples. The last part may be smaller."""
        tensors = (tensor.split(size) for tensor in (self.low, self.high, self.samples))
        return [Batch(*parts) for parts in zip(*tensors, strict=True)]


def allocate(shape: tuple[int, ...]) -> Tensor:
    """Allocate float16 memory of `shape`."""
    return torch.empty(shape, dtype=torch.float16)


def allocate_page_locked(shape: tuple[int, ...]) -> Tensor:
    """Allocate page-locked float16 memory of `shape`.

    Copies from page-locked memory to a GPU run asynchronously. torch reuses the memory only after the copies are
    done."""
    return torch.empty(shape, dtype=torch.float16, pin_memory=True)


def choose_memory(pin_memory: bool) -> Allocator:
    """Return a function that allocates batches, in page-locked memory or from a pool."""
    return allocate_page_locked if pin_memory else BufferPool()


class BufferPool:
    """Pool of memory that is reused as soon as no tensor refers to it.

    Reusing memory is faster, because the system clears every page of new memory."""

    def __init__(self) -> None:
        """Start with an empty pool."""
        self._free: dict[tuple[int, ...], list[NDArray[np.float16]]] = defaultdict(list)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Return float16 memory of `shape`, from the pool if a buffer of this shape is free."""
        free = self._free[shape]
        try:
            buffer = free.pop()
        except IndexError:
            buffer = np.empty(shape, dtype=np.float16)
        lent = buffer.view()
        weakref.finalize(lent, free.append, buffer).atexit = False
        return torch.from_numpy(lent)


def read_batch(split: ShardSplit, samples: NDArray[np.int64] | Sequence[int], memory: Allocator = allocate) -> Batch:
    """Read samples `(N,)` by number into one batch.

    Args:
        split: split to read from.
        samples: `(N,)` sample numbers.
        memory: function that allocates the batch.

    Raises:
        ShardSetError: a shard is missing or truncated.
        FetchError: a remote shard could not be fetched.
    """
    numbers = np.array(samples, dtype=np.int64)
    low = memory((len(numbers), *split.low_shape))
    high = memory((len(numbers), *split.high_shape))
    split.read_into(numbers, low.numpy(), high.numpy())
    return Batch(low, high, torch.from_numpy(numbers))


@dataclass(frozen=True)
class BatchPlan:
    """The settings that determine the samples that a process reads at each step, and their augmentation."""

    seed: int
    """Seed of the run."""
    batch_size: int
    """Number of samples in a global batch."""
    window_shards: int
    """Number of shards whose samples are shuffled together."""
    augment: AugmentConfig
    """Augmentation of pairs."""
    rank: int
    """Rank of this process."""
    world_size: int
    """Number of processes."""
    groups: int = 1
    """Number of groups to which the shards are dealt."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Shares of classes of samples."""


class TrainingBatches:
    """Reads this process's batch of any global step. The epoch follows from the step, so workers keep no state."""

    def __init__(self, split: ShardSplit, plan: BatchPlan) -> None:
        """Compute which shards belong to which group. This reads no samples.

        Raises:
            InputError: the mix or the groups do not fit the split.
        """
        self.split = split
        self.plan = plan
        self.classes = find_classes(split, plan.mix)
        """Classes whose shares are logged; those that are mixed come last."""
        mixture = choose_mixture(plan.mix, self.classes[-1], plan.groups) if plan.mix.shares else None
        self.order = SampleOrder(
            plan.seed, split.shard_sizes, plan.batch_size, plan.window_shards, plan.groups, mixture
        )
        self.steps_per_epoch = self.order.steps_per_epoch

    def samples_at(self, step: int) -> NDArray[np.int64]:
        """Compute the sample numbers `(batch_size / world_size,)` of this process at global step `step`, from 0."""
        return self.order.share(step, self.plan.rank, self.plan.world_size)

    def shares(self, samples: NDArray[np.int64]) -> dict[str, float]:
        """Compute the share of each class among samples `(N,)`, by name for the log."""
        return shares_of(self.classes, samples)

    def read(self, split: ShardSplit, step: int, samples: NDArray[np.int64], memory: Allocator) -> Batch:
        """Read and augment the samples `(N,)` of a step.

        Args:
            split: copy of the split that belongs to the calling thread, because threads must not share open files.
            step: global step, from 0.
            samples: `(N,)` sample numbers.
            memory: function that allocates the batch.

        Raises:
            ShardSetError: a shard is missing or truncated.
            FetchError: a remote shard could not be fetched.
        """
        batch = read_batch(split, samples, memory)
        if self.plan.augment == AugmentConfig():
            return batch
        return self._augment(batch, step, memory)

    def _augment(self, batch: Batch, step: int, memory: Allocator) -> Batch:
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        keys: list[tuple[int, ...]] = [(self.plan.seed, epoch, sample) for sample in batch.samples.tolist()]
        if self.order.mixture:
            # An epoch may repeat a sample, which must not be augmented in the same way each time.
            begin = step_in_epoch * self.plan.batch_size + self.plan.rank * len(keys)
            keys = [(*key, begin + number) for number, key in enumerate(keys)]
        pairs = zip(batch.low.numpy(), batch.high.numpy(), keys, strict=True)
        changed = [augment_pair(low, high, self.plan.augment, key) for low, high, key in pairs]
        return stack_pairs(changed, batch.samples, memory)


def stack_pairs(
    pairs: Iterable[tuple[NDArray[np.float16], NDArray[np.float16]]], samples: Tensor, memory: Allocator
) -> Batch:
    """Stack pairs of images into a batch.

    Args:
        pairs: low field `(1 + 2*context, H, W)` and high field `(1, H, W)` of N samples.
        samples: `(N,)` int64, sample numbers.
        memory: function that allocates the batch.
    """
    low, high = (_stack(images, memory) for images in zip(*pairs, strict=True))
    return Batch(low, high, samples)


def _stack(images: Sequence[NDArray[np.float16]], memory: Allocator) -> Tensor:
    stack = memory((len(images), *images[0].shape))
    np.stack(images, out=stack.numpy())
    return stack


def count_readers(data: DataConfig, on_gpu: bool) -> int:
    """Return the number of threads per rank that read batches in advance, as configured or by default."""
    return (2 if on_gpu else 0) if data.num_workers is None else data.num_workers


def training_loader(
    batches: TrainingBatches, steps: range, num_workers: int, prefetch: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    """Yield the batches of the global steps `steps`, without a pause between epochs.

    Every rank must use the same steps.

    Args:
        batches: batches to read.
        steps: global steps, from 0.
        num_workers: number of threads that read in advance. Threads are used because they spend their time in system
            calls, where they do not block the interpreter, and because they fill the memory that a step uses. Processes
            would have to transfer each batch. With 0 threads, each batch is read when the caller requests it. Samples
            that are downloaded one by one are requested in advance even then.
        prefetch: number of batches that each thread reads in advance.
        pin_memory: whether to read into page-locked memory, from which copies to a GPU run asynchronously.
    """
    memory = choose_memory(pin_memory)

    def read(split: ShardSplit, job: tuple[int, NDArray[np.int64]]) -> Batch:
        return batches.read(split, *job, memory)

    jobs = zip(steps, request_ahead(batches.split, map(batches.samples_at, steps), prefetch), strict=True)
    return read_ahead(batches.split, jobs, read, num_workers, prefetch)


def read_ahead(
    split: ShardSplit, jobs: Iterable[Job], read: Callable[[ShardSplit, Job], Batch], num_workers: int, prefetch: int
) -> Generator[Batch, None, None]:
    """Yield the batch that each job describes, in order, and read the batches of later jobs in threads.

    Args:
        split: split that the batches are read from.
        jobs: descriptions of the batches; the calling thread takes them.
        read: function that reads a batch. It gets a copy of the split that belongs to the calling thread.
        num_workers: number of threads. With 0 threads, each batch is read when the caller requests it.
        prefetch: number of batches that each thread reads in advance.
    """
    if not num_workers:
        yield from (read(split, job) for job in jobs)
        return
    own = threading.local()

    def open_own_files() -> None:
        own.split = copy.copy(split)

    pool = ThreadPoolExecutor(num_workers, "reader", open_own_files)
    try:
        submitted = (pool.submit(lambda job: read(own.split, job), job) for job in jobs)
        yield from results_in_order(submitted, num_workers * prefetch)
    finally:
        pool.shutdown(cancel_futures=True)
