from pathlib import Path

import numpy as np
import pytest

from upfield.sharding.cohort import Source, Subject, Unit
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.plan import plan_blocks, sample_order

NUM_SLICES = 10
CONFIG = ShardConfig(
    geometry=GeometryConfig(high_shape=(NUM_SLICES, 4, 4)), samples_per_shard=16, subjects_per_block=3, seed=1
)


def subject(number, split, units=2):
    name = f"s{number:02d}"
    kinds = tuple(Unit("a", name, "synthetic", variant) for variant in range(units))
    return Subject("a", name, split, Source((Path(name),), stacked=False), None, "resize", kinds)


SUBJECTS = [subject(number, "train") for number in range(10)] + [subject(number, "val") for number in range(10, 14)]


def blocks_of(split, subjects=SUBJECTS, config=CONFIG):
    return [block for block in plan_blocks(subjects, config) if block.split == split]


def test_every_subject_is_in_one_block_of_its_split():
    for split, ids in (("train", range(10)), ("val", range(10, 14)), ("test", [])):
        found = [member.id for block in blocks_of(split) for member in block.subjects]
        assert sorted(found) == [f"s{number:02d}" for number in ids]


def test_blocks_hold_as_many_samples_as_their_subjects():
    for block in plan_blocks(SUBJECTS, CONFIG):
        assert sum(block.shard_sizes) == sum(len(member.units) for member in block.subjects) * NUM_SLICES


def test_shards_are_numbered_without_gaps_and_none_is_a_crumb():
    for split in ("train", "val"):
        blocks = blocks_of(split)
        names = [name for block in blocks for name in block.shard_names]
        assert names == [f"{split}/{number:06d}" for number in range(len(names))]
        assert all(max(b.shard_sizes) <= 16 and max(b.shard_sizes) - min(b.shard_sizes) <= 1 for b in blocks)


def test_training_subjects_are_mixed_and_held_out_ones_keep_their_order():
    train, val = ([member.id for block in blocks_of(split) for member in block.subjects] for split in ("train", "val"))
    assert train != sorted(train)
    assert val == sorted(val)


def test_training_samples_are_mixed_over_a_blocks_subjects_and_held_out_ones_ascend():
    train, val = blocks_of("train")[0], blocks_of("val")[0]
    order = sample_order(train, CONFIG)
    assert sorted(order) == list(range(60))
    assert len(set(order[:16] // NUM_SLICES)) > 3
    np.testing.assert_array_equal(sample_order(val, CONFIG), np.arange(60))


@pytest.mark.parametrize("seed", [1, 2])
def test_orders_depend_on_seed_and_block_alone(seed):
    config = ShardConfig(geometry=CONFIG.geometry, samples_per_shard=16, subjects_per_block=3, seed=seed)
    first, second = blocks_of("train", config=config)[:2]
    assert not np.array_equal(sample_order(first, config), sample_order(second, config))
    same = np.array_equal(sample_order(first, config), sample_order(first, CONFIG))
    assert same == (seed == CONFIG.seed)


def test_subjects_without_pairs_fill_no_block():
    assert plan_blocks([subject(0, "train", units=0)], CONFIG) == []
