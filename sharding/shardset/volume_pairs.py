"""Group the samples of a split by the pair of volumes that they belong to."""

from collections import defaultdict
from dataclasses import dataclass

from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_split import ShardSplit


@dataclass(frozen=True)
class VolumePair:
    """All samples of one pair of volumes."""

    keys: tuple[SampleKey, ...]
    """Keys in the order of the slices."""
    samples: tuple[int, ...]
    """Numbers of the samples in the split."""

    @property
    def first(self) -> SampleKey:
        """Key of the first slice; the other keys differ only in `x`."""
        return self.keys[0]


def group_volumes(split: ShardSplit) -> list[VolumePair]:
    """Return every pair of volumes of a split, sorted by key; the order of the stored slices does not matter."""
    samples: dict[SampleKey, int] = {key: sample for sample, key in enumerate(read_keys(split))}
    members: dict[tuple[str, str, str, int], list[SampleKey]] = defaultdict(list)
    for key in sorted(samples):
        members[key.cohort, key.subject, key.kind, key.variant].append(key)
    return [VolumePair(tuple(keys), tuple(samples[key] for key in keys)) for keys in members.values()]


def read_keys(split: ShardSplit) -> list[SampleKey]:
    """Return the key of every sample of a split, in the order they are stored.

    Raises:
        ShardSetError: a key is not one that `upfield shard` writes.
    """
    return [SampleKey.parse(split.key(sample)) for sample in range(split.num_samples)]
