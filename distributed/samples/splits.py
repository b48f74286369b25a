"""The splits of the configured shard set, which is in a folder or at an address."""

from pathlib import Path

import torch

from upfield.common.addresses import format_address, is_remote
from upfield.common.errors import InputError
from upfield.common.files import make_writable_folder, user_cache_folder
from upfield.common.stores import Store
from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.cache import ShardCache
from upfield.distributed.samples.reader import count_readers
from upfield.distributed.samples.remote_files import RemoteFiles
from upfield.sharding.shardset.manifest import Manifest, read_manifest
from upfield.sharding.shardset.shard_index import ShardEntry
from upfield.sharding.shardset.shard_split import ShardSplit

# The validation split is read in stored order, so the ranks read from at most two neighbouring shards at a time.
VALIDATION_SHARDS = 2


def open_splits(data: DataConfig) -> tuple[ShardSplit, ShardSplit]:
    """Open the training split and the validation split.

    Raises:
        InputError: there is no complete set, or the cache is too small for the set.
        RunError: a store does not respond correctly.
    """
    manifest, files = read_set(data)
    root = format_address(str(data.shards)) if files else str(data.shards)
    if files:
        refuse_small_cache(data, manifest)
    return ShardSplit(root, "train", manifest, files), ShardSplit(root, "val", manifest, files)


def read_set(data: DataConfig) -> tuple[Manifest, RemoteFiles | None]:
    """Read the manifest of the configured set.

    Returns:
        The manifest, and access to the files of a remote set, or None if the set is in a folder.

    Raises:
        InputError: there is no complete set, or the address cannot be used.
        RunError: a store does not respond correctly.
    """
    place = str(data.shards)
    if not is_remote(place):
        return read_manifest(Path(place)), None
    if format_address(place) != place:
        raise InputError(
            f"{format_address(place)}: write the address with two slashes and without a password, because the run's "
            "files contain the address. Set passwords in the store's own variables or in fsspec's configuration."
        )
    store = Store(place, data.fetch_timeout_s)
    # The home folder is not looked at if the user named a folder.
    folder = data.cache_dir or user_cache_folder("shards", "Set --data.cache_dir.")
    make_writable_folder(folder, "--data.cache_dir")
    files = RemoteFiles(store, ShardCache(folder, data.cache_bytes), data.fetch_retries)
    return files.manifest(), files


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
