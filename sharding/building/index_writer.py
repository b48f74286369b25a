"""Write the index of each split, from the checksums of new shards and the index of the set that is extended."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from upfield.common.errors import ShardSetError
from upfield.common.files import write_bytes
from upfield.common.progress import say, track
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_index import ShardEntry, read_index
from upfield.sharding.shardset.shard_writer import WrittenShard, inspect_shard
from upfield.sharding.shardset.split_index import (
    IndexEntry,
    SplitIndex,
    describe_index,
    encode_index,
    index_shards,
    join_indices,
    read_split_index,
)


def write_indices(root: Path, shards: list[WrittenShard], old: Manifest | None) -> dict[str, IndexEntry]:
    """Write the index of each split that has shards.

    A split gets no index if an earlier version wrote some of its shards, without checksums, and these shards are not in
    the folder. Readers then use the index of each shard.

    Args:
        root: folder of the set.
        shards: the new shards, in order.
        old: manifest of the set that is extended, or None.

    Returns:
        The index of each split that has one.
    """
    entries: dict[str, IndexEntry] = {}
    for split in SPLITS:
        added = [shard for shard in shards if shard.entry.name.startswith(f"{split}/")]
        index = _index(root, added) if added else None
        if old and old.shards(split):
            known = read_old_index(root, old, split) or _describe_old(root, old.shards(split))
            index = join_indices(known, index) if known and index else known
        if index:
            data = encode_index(index, split)
            entries[split] = describe_index(data, split)
            write_bytes(root / entries[split].name, data)
    return entries


def read_old_index(root: Path, old: Manifest, split: str) -> SplitIndex | None:
    """Read the index of a split of a complete set; None if the set has none.

    Raises:
        ShardSetError: the manifest lists an index that is missing or damaged.
    """
    entry = old.index(split)
    return read_split_index(root / entry.name, entry, split) if entry else None


def _index(root: Path, shards: list[WrittenShard]) -> SplitIndex:
    indices = [read_index(root / f"{shard.entry.name}.idx") for shard in shards]
    return index_shards(indices, np.concatenate([shard.checksums for shard in shards]), str(root))


def _describe_old(root: Path, entries: list[ShardEntry]) -> SplitIndex | None:
    """Compute the checksums of shards that an earlier version wrote; None if the shards are missing or damaged."""
    problem = "is not on this machine"
    if all((root / f"{entry.name}.tar").is_file() for entry in entries):
        problem = "does not match the manifest"
        with suppress(ShardSetError):
            shards = [inspect_shard(root, entry.name) for entry in track(entries, "checksums", len(entries))]
            if [shard.entry for shard in shards] == entries:
                return _index(root, shards)
    split = entries[0].name.partition("/")[0]
    say(
        f"{root}: an earlier version wrote the first shards of {split} without checksums, and one of them {problem}. "
        f"So {split} gets no index: training starts more slowly and cannot check single samples."
    )
    return None
