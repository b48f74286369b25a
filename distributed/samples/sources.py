"""The batches of a run, whichever reader yields them. The rest of the training code does not know the readers."""

from collections.abc import Generator

from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.fetcher import fetch_ahead
from upfield.distributed.samples.reader import Batch, BatchPlan, TrainingBatches, training_loader
from upfield.distributed.samples.webdataset_reader import StreamedBatches
from upfield.sharding.shardset.shard_split import ShardSplit

Batches = TrainingBatches | StreamedBatches
"""The batches of one process. Both readers have `split`, `plan` and `steps_per_epoch`."""


def plan_batches(data: DataConfig, split: ShardSplit, plan: BatchPlan) -> Batches:
    """Return the batches that the configured reader yields. This reads no data.

    Args:
        data: part `data` of the configuration.
        split: training split.
        plan: settings that determine the batches.
    """
    if data.reader == "webdataset":
        return StreamedBatches(split, plan, data.shuffle_buffer)
    return TrainingBatches(split, plan)


def load_batches(
    batches: Batches, steps: range, num_workers: int, prefetch: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    """Yield the batches of the global steps `steps`, without a pause between epochs.

    Every rank must use the same steps.

    Args:
        batches: batches to read.
        steps: global steps, from 0.
        num_workers: number of threads that read in advance.
        prefetch: number of batches that each thread reads in advance.
        pin_memory: whether to read into page-locked memory, from which copies to a GPU run asynchronously.

    Raises:
        ShardSetError: a shard is missing or damaged.
        FetchError: a shard could not be downloaded.
    """
    if isinstance(batches, StreamedBatches):
        return batches.load(steps, num_workers, prefetch, pin_memory)
    loader = training_loader(batches, steps, num_workers, prefetch, pin_memory)
    return fetch_ahead(loader, batches, steps, num_workers * prefetch)
