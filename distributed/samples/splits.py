"""The splits of the configured shard set, which is in a folder or at an address."""

import torch

from upfield.common.errors import InputError
from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.reader import count_readers
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.shard_index import ShardEntry
from upfield.sharding.shardset.shard_set import open_set
from upfield.sharding.shardset.shard_split import ShardSplit

# The validation split is read in stored order, so the ranks read from at most two neighbouring shards at a time.
VALIDATION_SHARDS = 2


def open_splits(data: DataConfig) -> tuple[ShardSplit, ShardSplit]:
    """Open the training split and the validation split.

    Raises:
        InputError: there is no complete set, or the cache is too small for the set.
        RunError: a store does not respond correctly.
    """
    shards = open_set(data.shards, data)
    if shards.is_remote and data.reader == "exact":
        refuse_small_cache(data, shards.manifest)
    return shards.split("train"), shards.split("val")


def refuse_small_cache(data: DataConfig, manifest: Manifest) -> None:
    """Raise InputError if the cache cannot hold the windows that are needed at once."""
    entries = manifest.shards("train")
    window_samples = sum(sorted(entry.samples for entry in entries)[: data.window_shards])
    read_at_once = data.batch_size * (1 + data.prefetch * count_readers(data, torch.cuda.is_available()))
    windows = 2 + (read_at_once - 1) // max(1, window_samples)
    needed = sum_largest(entries, windows * data.window_shards) + sum_largest(manifest.shards("val"), VALIDATION_SHARDS)
    if needed > data.cache_bytes:
        raise InputError(
            f"data.cache_bytes: expected at least {needed}, for {windows} windows of {data.window_shards} shards and "
            f"{VALIDATION_SHARDS} validation shards, found {data.cache_bytes}. Raise --data.cache_bytes, or lower "
            "--data.window_shards."
        )


def sum_largest(entries: list[ShardEntry], number: int) -> int:
    """Return the total size in bytes of the `number` largest shards."""
    return sum(sorted((entry.bytes for entry in entries), reverse=True)[:number])
