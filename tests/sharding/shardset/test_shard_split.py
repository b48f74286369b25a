import copy
import os
import pickle
import shutil

import numpy as np
import pytest
from built_sets import as_by_an_earlier_version

from upfield.common.command import parse
from upfield.common.errors import ShardSetError
from upfield.sharding.building.pairs.subject_pairs import make_pairs
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import find_cohorts
from upfield.sharding.shard import COMMAND
from upfield.sharding.shardset.shard_files import MAX_OPEN_FILES
from upfield.sharding.shardset.shard_split import ShardSplit


@pytest.fixture
def train(tiny_shards):
    return ShardSplit(tiny_shards, "train")


def read(split, samples):
    """Read low and high of some samples."""
    low = np.full((len(samples), *split.low_shape), np.nan, np.float16)
    high = np.full((len(samples), *split.high_shape), np.nan, np.float16)
    split.read_into(samples, low, high)
    return low, high


def test_samples_are_read_back_as_written(tiny_cohort, train):
    config = parse(COMMAND, ["--config", str(tiny_cohort / "cohorts.yaml"), "--out", "x"])
    subjects = preflight(find_cohorts(config.cohorts, tiny_cohort).subjects).subjects
    pairs = {pair.unit: pair for subject in subjects for pair in make_pairs(subject, config).pairs}
    slices = {unit.key(x): (unit, x) for unit in pairs for x in range(20)}
    low, high = read(train, range(train.num_samples))
    for number in range(train.num_samples):
        unit, x = slices[train.key(number)]
        np.testing.assert_array_equal(low[number, 0], pairs[unit].low[x])
        np.testing.assert_array_equal(high[number, 0], pairs[unit].high[x])


def test_records_agree_with_keys(train):
    for number in range(train.num_samples):
        record = train.record(number)
        parts = [record["cohort"], record["subject"], record["kind"], record["variant"], f"x{record['slice']:03d}"]
        assert "-".join(map(str, parts)) == train.key(number)
        assert (record["parameters"] == {}) == (record["kind"] == "real")
        assert record.get("metadata", {}).get("site") == ("Guys" if record["cohort"] == "ixi" else None)


def test_samples_come_in_the_requested_order(train):
    low, high = read(train, [3, 170, 3])
    np.testing.assert_array_equal(low[0], low[2])
    np.testing.assert_array_equal(high[1], read(train, [170])[1][0])


def test_a_short_read_is_continued(train, monkeypatch):
    expected, preadv = read(train, [3, 170]), os.preadv

    def at_most_500_bytes(file, targets, offset):
        views = [memoryview(target).cast("B") for target in targets]
        return preadv(file, [next(view for view in views if len(view))[:500]], offset)

    monkeypatch.setattr(os, "preadv", at_most_500_bytes)
    np.testing.assert_array_equal(read(train, [3, 170]), expected)


def test_a_split_sent_to_another_process_opens_its_own_files(train):
    expected = read(train, [5])[0]
    sent = pickle.loads(pickle.dumps(train))
    assert sent._reader is not train._reader
    np.testing.assert_array_equal(read(sent, [5])[0], expected)


def test_open_files_are_bounded_and_closed(train, monkeypatch):
    monkeypatch.setattr("upfield.sharding.shardset.shard_files.MAX_OPEN_FILES", 2)
    assert MAX_OPEN_FILES > 2
    train = copy.copy(train)
    before = len(os.listdir("/proc/self/fd"))
    read(train, train.shard_starts[:-1])
    assert len(train.entries) > 2
    assert len(os.listdir("/proc/self/fd")) == before + 2
    train.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "manifest.json").unlink(), "there is no shard set here"),
        (lambda root: (root / "manifest.json").write_text("[]"), "this is not the manifest of a shard set"),
        (
            lambda root: (root / "manifest.json").write_text('{"format": "upfield-shards", "version": 99}'),
            "expected upfield-shards version 2, found upfield-shards version 99",
        ),
        (
            lambda root: (as_by_an_earlier_version(root) / "train/000000.idx").unlink(),
            "000000.idx: this shard index is missing",
        ),
        (
            lambda root: (as_by_an_earlier_version(root) / "train/000000.idx").write_text("v1.2 0\n"),
            "000000.idx: expected 20 samples as in the manifest, found 0",
        ),
    ],
)
def test_a_damaged_set_is_refused_when_it_is_opened(tiny_shards, tmp_path, damage, message):
    root = shutil.copytree(tiny_shards, tmp_path / "shards")
    damage(root)
    with pytest.raises(ShardSetError, match=message):
        ShardSplit(root, "train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(os.unlink, "this shard is missing"), (lambda tar: os.truncate(tar, 9000), "truncated")],
)
def test_a_damaged_shard_is_refused_when_it_is_read(tiny_shards, tmp_path, damage, message):
    root = shutil.copytree(tiny_shards, tmp_path / "shards")
    split = ShardSplit(root, "val")
    damage(root / "val/000000.tar")
    with pytest.raises(ShardSetError, match=rf"{root}/val/000000.tar: .*{message}"):
        read(split, range(split.num_samples))
