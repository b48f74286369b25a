from itertools import groupby

import numpy as np
import pytest

from upfield.sharding.building.manifest_writer import Addition, content_config, write_manifest
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.previews.selection import BACKGROUND, choose_groups, choose_volumes, share_evenly
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.shard_writer import Sample, write_shard

GROUPS = [("a", "real"), ("a", "synthetic"), ("b", "synthetic")]
NUM_SLICES = 12


def make_samples():
    """Three groups of two subjects, in which every other slice is empty, as at the sides of a head."""
    rng = np.random.default_rng(0)
    for cohort, kind in GROUPS:
        for subject in ("sub-1", "sub-real-2"):
            for x in range(NUM_SLICES):
                low, high = (rng.random((1, 22, 20)) * (x % 2) for _ in range(2))
                key = f"{cohort}-{subject}-{kind}-0-x{x:03d}"
                yield Sample(key, low.astype(np.float16), high.astype(np.float16), {})


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp("selection") / "set"
    samples = list(make_samples())
    order = np.random.default_rng(1).permutation(len(samples))
    config = ShardConfig("out", geometry=GeometryConfig(high_shape=(NUM_SLICES, 22, 20)))
    entry = write_shard(root, "train/000000", (samples[i] for i in order))
    write_manifest(root, content_config(config), Addition([], [entry]), None)
    return ShardSplit(root, "train")


def shown(split, pairs, seed=0):
    return [item for group in choose_groups(split, pairs, seed) for item in group.shown]


@pytest.mark.parametrize(("sizes", "total"), [([5, 5, 5], 8), ([1, 9, 9], 8), ([2, 2], 9), ([4, 4, 4], 2), ([3], 1)])
def test_shares_are_even_as_far_as_sizes_allow(sizes, total):
    shares = share_evenly(sizes, total)
    assert sum(shares) == min(total, sum(sizes))
    open_shares = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert max(shares) - min(open_shares, default=max(shares)) <= 1


@pytest.mark.parametrize("pairs", [3, 4, 8])
def test_every_cohort_and_kind_is_shown(split, pairs):
    items = shown(split, pairs)
    assert len(items) == pairs
    assert list(dict.fromkeys((item.key.cohort, item.key.kind) for item in items)) == GROUPS


def test_subjects_take_turns(split):
    assert len({(item.key.cohort, item.key.kind, item.key.subject) for item in shown(split, 6)}) == 6


def test_empty_slices_are_shown_only_if_no_others_are_left(split):
    assert all((item.high > BACKGROUND).mean() > 0.5 for item in shown(split, 8))
    assert sum(item.high.max() == 0 for item in shown(split, 72)) == 36


def test_the_choice_depends_on_the_seed_alone(split):
    keys = [[item.key for item in shown(split, 8, seed)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_a_group_without_pairs_still_has_slices_to_measure(split):
    groups = choose_groups(split, 1, 0)
    assert [len(group.shown) for group in groups] == [1, 0, 0]
    assert all(group.measured for group in groups)


def test_volumes_hold_every_slice_once_in_order(split):
    for pair in choose_volumes(split, 6, 0):
        assert [key.x for key in pair.keys] == list(range(NUM_SLICES))
        assert [split.key(sample) for sample in pair.samples] == list(map(str, pair.keys))
        assert len({(key.cohort, key.subject, key.kind, key.variant) for key in pair.keys}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_synthetic_and_real_volumes_show_the_same_subjects(split, seed):
    pairs = [pair.first for pair in choose_volumes(split, 3, seed)]
    assert [(key.cohort, key.kind) for key in pairs] == GROUPS
    assert pairs[0].subject == pairs[1].subject


def test_the_seed_chooses_the_subjects(split):
    assert {choose_volumes(split, 3, seed)[0].first.subject for seed in range(8)} == {"sub-1", "sub-real-2"}


def test_the_volumes_of_a_subject_follow_each_other_real_ones_first(split):
    firsts = [pair.first for pair in choose_volumes(split, 6, 0)]
    runs = [[key.kind for key in run] for _, run in groupby(firsts, key=lambda key: (key.cohort, key.subject))]
    assert runs == [["real", "synthetic"], ["real", "synthetic"], ["synthetic"], ["synthetic"]]


def test_no_more_volumes_are_chosen_than_exist(split):
    assert len(choose_volumes(split, 99, 0)) == 6
