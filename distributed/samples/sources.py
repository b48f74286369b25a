"""The batches of a run, whichever reader yields them. The rest of the training code does not know the readers."""

from collections.abc import Generator, Iterator

from upfield.common.addresses import is_remote
from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.fetcher import fetch_ahead
from upfield.distributed.samples.groups import count_nodes, describe_groups, ranks_of_node
from upfield.distributed.samples.reader import Batch, BatchPlan, TrainingBatches, count_readers, training_loader
from upfield.distributed.samples.sample_classes import describe_mix
from upfield.distributed.samples.splits import groups_of_node, refuse_small_cache
from upfield.distributed.samples.webdataset_reader import StreamedBatches
from upfield.sharding.shardset.shard_split import ShardSplit

Batches = TrainingBatches | StreamedBatches
"""The batches of one process. Both readers have `split`, `plan`, `steps_per_epoch` and `shares`."""


def plan_batches(data: DataConfig, split: ShardSplit, plan: BatchPlan) -> Batches:
    """Determine the batches that the configured reader yields, and check that the node's cache is large enough.

    This reads no samples.

    Args:
        data: part `data` of the configuration.
        split: training split.
        plan: settings that determine the batches.

    Raises:
        InputError: the mix or the groups do not fit the split, or the cache is too small.
    """
    if data.reader == "webdataset":
        return StreamedBatches(split, plan, data.shuffle_buffer)
    batches = TrainingBatches(split, plan)
    if is_remote(str(data.shards)):
        num_ranks = len(ranks_of_node(plan.rank, plan.world_size))
        groups = groups_of_node(batches.order, plan.rank, plan.world_size)
        refuse_small_cache(data, split.manifest, batches.order, groups, num_ranks)
    return batches


def describe_batches(batches: Batches, data: DataConfig, on_gpu: bool) -> Iterator[str]:
    """Yield lines about the order of the samples, for the start of a run.

    Args:
        batches: batches of the run.
        data: part `data` of the configuration.
        on_gpu: whether the run trains on GPUs.
    """
    if isinstance(batches, StreamedBatches):
        yield batches.describe(count_readers(data, on_gpu))
        return
    order = batches.order
    if is_remote(str(data.shards)) or order.groups > 1:
        yield describe_groups(order.groups, data, count_nodes(batches.plan.world_size))
    if order.mixture:
        yield describe_mix(order.mixture, batches.classes[-1], order.steps_per_epoch, order.batch_size)


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
