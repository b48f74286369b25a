"""The slices of a volume are stacked in anatomical order, in whatever order they are stored."""

from pathlib import Path

import numpy as np

from upfield.evaluation.stacked_pairs import read_pair
from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import group_volumes

VOLUMES, SLICES = 9, 180


def test_shuffled_slices_are_stacked_in_anatomical_order(tiny_shards: Path) -> None:
    split = ShardSplit(tiny_shards, "train")
    numbers = [SampleKey.parse(split.key(sample)).x for sample in range(split.num_samples)]
    assert numbers != sorted(numbers)
    pairs = group_volumes(split)
    assert (len(pairs), len({sample for pair in pairs for sample in pair.samples})) == (VOLUMES, SLICES)
    pair = read_pair(split, pairs[3])
    assert [key.x for key in pair.keys] == list(range(20))
    for x in (0, 7, 19):
        sample = next(s for s in range(split.num_samples) if split.key(s) == str(pair.keys[x]))
        low, high = np.empty((1, 1, 24, 28), np.float16), np.empty((1, 1, 24, 28), np.float16)
        split.read_into([sample], low, high)
        assert np.array_equal(pair.cubic[x], low[0, 0].astype(np.float32))
        assert np.array_equal(pair.high[x], high[0, 0].astype(np.float32))
