"""Reading of whole sets and of training batches, for tests of remote sets."""

from collections.abc import Generator
from dataclasses import replace

from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.fetcher import fetch_ahead
from upfield.distributed.samples.reader import Batch, BatchPlan, TrainingBatches, read_every_sample, training_loader
from upfield.distributed.samples.splits import open_splits


def impatient(data: DataConfig, fault: str) -> DataConfig:
    """Shorten the timeout for a test of stalls, and allow more retries, because a busy machine may also stall."""
    return replace(data, fetch_timeout_s=0.5, fetch_retries=9) if fault == "stall" else data


def every_value(data: DataConfig) -> list[list[float]]:
    return [
        batch.high.flatten().tolist() for split in open_splits(data) for batch in read_every_sample(split, 20, 0, 1)
    ]


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
