from pathlib import Path

import numpy as np
import pytest

from upfield.imaging.volume_header import VolumeHeader
from upfield.sharding.building.plan import plan_blocks, sample_order
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.shardset.sample_key import Unit

NUM_SLICES = 10
CONFIG = ShardConfig(
    "out", geometry=GeometryConfig(high_shape=(NUM_SLICES, 4, 4)), samples_per_shard=16, subjects_per_block=3, seed=1
)


def subject(number, split, units=2):
    name = f"s{number:02d}"
    kinds = tuple(Unit("a", name, "synthetic", variant) for variant in range(units))
    header = VolumeHeader(np.eye(4), (4, 4, 4), (), is_placed=True)
    high = SourceVolume((Path(name),), stacked=False, header=header, traces=(), files=(Path(name),))
    return Subject("a", name, name, split, high, None, "resize", kinds)


SUBJECTS = [subject(number, "train") for number in range(10)] + [subject(number, "val") for number in range(10, 14)]


def blocks_of(split, subjects=SUBJECTS, config=CONFIG):
    return [block for block in plan_blocks(subjects, config) if block.split == split]


def test_every_subject_is_in_one_block_of_its_split():
    for split, ids in (("train", range(10)), ("val", range(10, 14)), ("test", [])):
        found = [member.id for block in blocks_of(split) for member in block.subjects]
        assert sorted(found) == [f"s{number:02d}" for number in ids]


def test_blocks_hold_as_many_samples_as_their_subjects():
    for block in plan_blocks(SUBJECTS, CONFIG):
        samples = sum(len(member.units) for member in block.subjects) * NUM_SLICES
        assert sum(block.shard_sizes(samples).values()) == samples


def sizes_of(block):
    return block.shard_sizes(sum(len(member.units) for member in block.subjects) * NUM_SLICES)


def test_shards_are_numbered_without_gaps_and_none_is_tiny():
    for split in ("train", "val"):
        blocks = blocks_of(split)
        assert [name for block in blocks for name in sizes_of(block)] == [
            f"{split}/{number:06d}" for number in range(sum(block.num_shards for block in blocks))
        ]
        sizes = [list(sizes_of(block).values()) for block in blocks]
        assert all(max(its) <= 16 and max(its) - min(its) <= 1 for its in sizes)


def test_numbers_of_existing_shards_are_not_used_again():
    blocks = plan_blocks(SUBJECTS, CONFIG, {"train": 7})
    assert next(block for block in blocks if block.split == "train").first_shard == 7
    assert next(block for block in blocks if block.split == "val").first_shard == 0


def test_a_block_that_lost_samples_keeps_to_its_own_shards():
    block = blocks_of("train")[0]
    assert list(block.shard_sizes(3)) == list(sizes_of(block))[:3]
    assert block.shard_sizes(0) == {}


def test_training_subjects_are_mixed_and_held_out_ones_keep_their_order():
    train, val = ([member.id for block in blocks_of(split) for member in block.subjects] for split in ("train", "val"))
    assert train != sorted(train)
    assert val == sorted(val)


def test_training_samples_are_mixed_over_a_blocks_subjects_and_held_out_ones_ascend():
    train, val = blocks_of("train")[0], blocks_of("val")[0]
    order = sample_order(train, 60, 1)
    assert sorted(order) == list(range(60))
    assert len(set(order[:16] // NUM_SLICES)) > 3
    np.testing.assert_array_equal(sample_order(val, 60, 1), np.arange(60))


@pytest.mark.parametrize("seed", [1, 2])
def test_orders_depend_on_seed_and_block_alone(seed):
    config = ShardConfig("out", geometry=CONFIG.geometry, samples_per_shard=16, subjects_per_block=3, seed=seed)
    first, second = blocks_of("train", config=config)[:2]
    assert not np.array_equal(sample_order(first, 60, seed), sample_order(second, 60, seed))
    same = np.array_equal(sample_order(first, 60, seed), sample_order(first, 60, CONFIG.seed))
    assert same == (seed == CONFIG.seed)


def test_subjects_without_pairs_fill_no_block():
    assert plan_blocks([subject(0, "train", units=0)], CONFIG) == []
