"""Reading of whole sets and of training batches, for tests of remote sets."""

from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np

from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.fetcher import fetch_ahead
from upfield.distributed.samples.look_ahead import request_ahead
from upfield.distributed.samples.reader import Batch, BatchPlan, TrainingBatches, read_batch, training_loader
from upfield.distributed.samples.splits import open_splits
from upfield.sharding.shardset.shard_split import ShardSplit


def impatient(data: DataConfig, fault: str) -> DataConfig:
    """Shorten the timeout for a test of stalls, and allow more retries, because a busy machine may also stall."""
    return replace(data, fetch_timeout_s=0.5, fetch_retries=9) if fault == "stall" else data


def every_value(data: DataConfig) -> list[list[float]]:
    return [batch.high.flatten().tolist() for split in open_splits(data) for batch in read_every_sample(split, 20)]


def read_every_sample(split: ShardSplit, batch_size: int) -> Iterator[Batch]:
    """Yield a whole split in stored order."""
    starts = range(0, split.num_samples, batch_size)
    batches = (np.arange(start, min(start + batch_size, split.num_samples)) for start in starts)
    for samples in request_ahead(split, batches, 1):
        yield read_batch(split, samples)


def open_loader(data: DataConfig, steps: range, rank: int = 0, world_size: int = 1) -> Generator[Batch, None, None]:
    """Open a set, and return the loader that training uses."""
    split, _ = open_splits(data)
    order = (3, data.batch_size, data.window_shards, data.augment)
    batches = TrainingBatches(split, BatchPlan(*order, rank, world_size, data.groups or 1, data.mix))
    loader = training_loader(batches, steps, data.num_workers or 0, data.prefetch, pin_memory=False)
    return fetch_ahead(loader, batches, steps, (data.num_workers or 0) * data.prefetch)


def values_trained_on(data: DataConfig, steps: range, rank: int = 0, world_size: int = 1) -> list[Batch]:
    return list(open_loader(data, steps, rank, world_size))


def cached_bytes(data: DataConfig) -> int:
    assert data.cache_dir is not None
    return sum(path.stat().st_size for path in data.cache_dir.iterdir())
