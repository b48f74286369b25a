"""The splits of the configured shard set, which is in a folder or at an address."""

import os

import numpy as np
import torch

from upfield.common.errors import InputError
from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.groups import default_groups, ranks_of_node
from upfield.distributed.samples.order import SampleOrder
from upfield.distributed.samples.reader import count_readers
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.shard_index import ShardEntry
from upfield.sharding.shardset.shard_set import open_set
from upfield.sharding.shardset.shard_split import ShardSplit

# Of the validation split, each process holds the shard that it reads and the next one.
VALIDATION_SHARDS = 2


def open_splits(data: DataConfig) -> tuple[ShardSplit, ShardSplit]:
    """Open the training split and the validation split.

    Raises:
        InputError: there is no complete set, or the cache is too small for the set.
        RunError: a store does not respond correctly.
    """
    shards = open_set(data.shards, data)
    if shards.is_remote and data.reader == "exact":
        # With a mix, the manifest alone does not show which shards are needed, but a cache has room for two at least.
        window_shards, groups = (1, 1) if data.mix.shares else (data.window_shards, default_groups(data, True))
        sizes = np.array([entry.samples for entry in shards.manifest.shards("train")], dtype=np.int64)
        order = SampleOrder(0, sizes, data.batch_size, window_shards, groups)
        rank, world_size = (int(os.environ.get(name, least)) for name, least in (("RANK", 0), ("WORLD_SIZE", 1)))
        num_ranks = len(ranks_of_node(rank, world_size))
        refuse_small_cache(data, shards.manifest, order, groups_of_node(order, rank, world_size), num_ranks)
    return shards.split("train"), shards.split("val")


def groups_of_node(order: SampleOrder, rank: int, world_size: int) -> range:
    """Return the groups from which the processes of this process's node read."""
    ranks = ranks_of_node(rank, world_size)
    return range(order.groups_of(ranks[0], world_size).start, order.groups_of(ranks[-1], world_size).stop)


def refuse_small_cache(
    data: DataConfig, manifest: Manifest, order: SampleOrder, groups: range, num_ranks: int = 1
) -> None:
    """Check that the cache of a node can hold the windows that its processes need at once.

    Args:
        data: part `data` of the configuration.
        manifest: manifest of the set.
        order: the sample order. Its seed does not matter.
        groups: groups from which the processes of the node read.
        num_ranks: number of processes of the node.

    Raises:
        InputError: the cache is too small.
    """
    if data.fetch == "samples":
        # No shard is cached.
        return
    entries, streams = manifest.shards("train"), order.streams_of(groups)
    steps = 1 + data.prefetch * count_readers(data, torch.cuda.is_available())
    numbers = [order.most_windows(stream, steps) for stream in streams]
    held = [
        sum_largest([entries[shard] for shard in stream.piece.shards], windows * order.window_shards)
        for stream, windows in zip(streams, numbers, strict=True)
    ]
    own = {shard for stream in streams for shard in stream.piece.shards.tolist()}
    needed = min(sum(held), sum(entries[shard].bytes for shard in own))
    num_validation = min(VALIDATION_SHARDS * num_ranks, len(manifest.shards("val")))
    needed += sum_largest(manifest.shards("val"), num_validation)
    # The indices stay in the cache for as long as the run uses them.
    needed += sum(index.bytes for split in ("train", "val") if (index := manifest.index(split)))
    if needed > data.cache_bytes:
        each = f" in each of {len(groups)} groups" if len(groups) > 1 else ""
        each += f" for each of {order.mixture.num_classes} classes" if order.mixture else ""
        lower = ", or lower --data.groups" if len(groups) > 1 else ""
        lower = ", or lower --data.window_shards" if order.window_shards > 1 else lower
        raise InputError(
            f"data.cache_bytes: expected at least {needed}, for {max(numbers)} windows of {order.window_shards} shards"
            f"{each}, {num_validation} validation shards and the indices, found {data.cache_bytes}. "
            f"Raise --data.cache_bytes{lower}."
        )


def sum_largest(entries: list[ShardEntry], number: int) -> int:
    """Return the total size in bytes of the `number` largest shards."""
    return sum(sorted((entry.bytes for entry in entries), reverse=True)[:number])
