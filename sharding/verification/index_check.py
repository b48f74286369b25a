"""Compare the index of a split with the manifest and with the tars."""

import hashlib
from collections.abc import Iterator, Sequence

from upfield.common.errors import ShardSetError
from upfield.sharding.shardset.shard_index import ShardEntry
from upfield.sharding.shardset.split_index import IndexEntry, SplitIndex, parse_split_index, refuse_other_shards
from upfield.sharding.verification.shard_scan import ScannedSample


def parse_listed_index(data: bytes | None, entry: IndexEntry, shards: Sequence[ShardEntry], split: str) -> SplitIndex:
    """Parse the index of a split that the manifest lists.

    Args:
        data: content of the file; None if it is missing.
        entry: the index, as the manifest lists it.
        shards: the shards of the split, as the manifest lists them.
        split: name of the split.

    Raises:
        ShardSetError: the file is missing, or is not the index of the split; the message does not name the file.
    """
    if data is None:
        raise ShardSetError("the manifest lists this file, but it is missing")
    if len(data) != entry.bytes:
        raise ShardSetError(f"expected {entry.bytes} bytes, found {len(data)}")
    if (sha256 := hashlib.sha256(data).hexdigest()) != entry.sha256:
        raise ShardSetError(f"expected sha256 {entry.sha256}, found {sha256}")
    try:
        index = parse_split_index(data, entry.name, split)
        refuse_other_shards(index, shards, entry.name)
    except ShardSetError as error:
        raise ShardSetError(str(error).removeprefix(f"{entry.name}: ")) from error
    return index


def stretch_problems(index: SplitIndex, shard: int, samples: Sequence[ScannedSample]) -> Iterator[str]:
    """Yield a line for each sample of a shard that the index describes differently from the tar.

    Args:
        index: index of the split.
        shard: number of the shard in the split.
        samples: the samples, as the tar holds them.
    """
    first = int(index.shard_starts[shard])
    for number, sample in enumerate(samples[: int(index.shard_sizes[shard])], start=first):
        key, json_bytes = str(index.key(number)), int(index.json_bytes[number])
        labels = [index.labels_bytes] if index.has_labels(number) else []
        if sample.key not in (None, key):
            yield f"sample {number}: expected {sample.key}, as in the tar, found {key}"
        elif [size for _, _, size in sample.members] != [*index.member_bytes, json_bytes, *labels]:
            sizes = ", ".join(str(size) for _, _, size in sample.members)
            yield f"sample {number} ({key}): expected members of {sizes} bytes, as in the tar, found other sizes"
        elif index.checksums is not None and sample.crc32 not in (None, crc32 := int(index.checksums[number])):
            yield f"sample {number} ({key}): expected CRC-32 {sample.crc32}, as in the tar, found {crc32}"
