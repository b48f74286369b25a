import hashlib
import json
import shutil
import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_sets import as_by_an_earlier_version

from upfield.common.errors import ShardSetError
from upfield.common.files import write_json
from upfield.sharding.shardset.manifest import hash_manifest, read_manifest
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_index import ShardIndex
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.split_index import (
    SplitIndex,
    encode_index,
    index_shards,
    join_indices,
    parse_split_index,
)


@pytest.fixture(scope="module")
def earlier(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_shards`, as if an earlier version had built it."""
    return as_by_an_earlier_version(shutil.copytree(tiny_shards, tmp_path_factory.mktemp("earlier") / "shards"))


def plain(index: SplitIndex) -> dict[str, Any]:
    """Return the fields of an index as plain values."""
    values = {field.name: getattr(index, field.name) for field in fields(index)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def made_up(num_shards: int, subject: str = "s", labels: int = 0) -> SplitIndex:
    """Return the index of shards of 3 samples whose json members take different numbers of blocks.

    Each sample carries `labels` bytes of labels; 0 stands for none.
    """
    keys = [[f"a-{subject}{shard}-real-0-x{x:03d}" for x in range(3)] for shard in range(num_shards)]
    sizes = np.array([[600, 1200, 500, labels], [600, 1200, 512, labels], [600, 1200, 1025, labels]])
    indices = [ShardIndex(np.array(names, dtype=np.bytes_), sizes, sizes) for names in keys]
    checksums = np.arange(3 * num_shards, dtype=np.uint32) + zlib.crc32(subject.encode())
    return index_shards(indices, checksums.astype(np.uint32), "set")


@pytest.mark.parametrize("split", SPLITS)
def test_each_stretch_is_one_sample_with_its_checksum(tiny_shards: Path, split: str) -> None:
    opened = ShardSplit(tiny_shards, split)
    tars = [(tiny_shards / f"{entry.name}.tar").read_bytes() for entry in opened.entries]
    stretches, last = opened.stretches(range(opened.num_samples)), -1
    for sample, stretch in enumerate(stretches):
        data = tars[stretch.shard][stretch.start : stretch.end]
        assert data.startswith(f"{opened.key(sample)}.low.npy\0".encode())
        assert zlib.crc32(data) == stretch.crc32
        # The stretches of a shard follow one another from its first byte.
        assert stretch.start == (stretches[sample - 1].end if stretch.shard == last else 0)
        last = stretch.shard


@pytest.mark.parametrize("split", SPLITS)
def test_both_kinds_of_index_say_the_same(tiny_shards: Path, earlier: Path, split: str) -> None:
    new, old = (ShardSplit(root, split) for root in (tiny_shards, earlier))
    assert new.index.checksums is not None
    assert old.index.checksums is None
    assert {**plain(new.index), "checksums": None} == plain(old.index)
    assert [new.record(sample) for sample in range(3)] == [old.record(sample) for sample in range(3)]


def test_an_encoded_index_is_parsed_to_the_same(tiny_shards: Path) -> None:
    for index in (made_up(1), made_up(5), replace(made_up(1), units=[("a", "x" * 500, "real", 0)])):
        data = encode_index(index, "val")
        assert len(data) % 64 == 0
        assert plain(parse_split_index(data, "index", "val")) == plain(index)


def test_starts_follow_from_sizes() -> None:
    index = made_up(2)
    # Headers take 3 blocks, the low member 2, the high member 3, and the json members 1, 1 and 3.
    assert index.starts(np.arange(6)).tolist() == [0, 9 * 512, 18 * 512] * 2
    assert index.ends(np.arange(6)).tolist() == [9 * 512, 18 * 512, 29 * 512] * 2
    assert index.shard_bytes().tolist() == [29 * 512] * 2


def test_labels_are_the_last_member_of_a_stretch() -> None:
    # A header and two blocks of labels follow each json member.
    index = made_up(2, labels=1000)
    assert index.starts(np.arange(3)).tolist() == [0, 12 * 512, 24 * 512]
    assert [index.labels_offset(sample) for sample in range(3)] == [10 * 512, 10 * 512, 12 * 512]
    joined = join_indices(made_up(1, "t"), index)
    assert [joined.has_labels(sample) for sample in range(9)] == [False] * 3 + [True] * 6
    assert joined.shard_bytes().tolist() == [29 * 512, 38 * 512, 38 * 512]
    assert plain(parse_split_index(encode_index(joined, "val"), "set", "val")) == plain(joined)
    assert joined.shard(1).sizes[:, 3].tolist() == [1000] * 3
    assert joined.shard(0).sizes[:, 3].tolist() == joined.shard(0).offsets[:, 3].tolist() == [0] * 3


def test_joined_indices_equal_the_index_of_all_shards() -> None:
    first, second = made_up(2, "s"), made_up(3, "t")
    joined, samples = join_indices(first, second), np.arange(15)
    parts = [(first, sample) for sample in range(6)] + [(second, sample) for sample in range(9)]
    assert [joined.key(sample) for sample in range(15)] == [index.key(sample) for index, sample in parts]
    assert joined.starts(samples).tolist() == [*first.starts(samples[:6]), *second.starts(samples[:9])]
    assert plain(joined)["checksums"] == plain(first)["checksums"] + plain(second)["checksums"]


def spoil(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "this index is missing, but the manifest lists it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-64]), r"expected \d+ bytes as in the manifest, found \d+"),
        (lambda path: spoil(path, -1), r"expected sha256 \w{64} as in the manifest, found \w{64}"),
    ],
)
def test_an_index_that_is_not_the_listed_one_is_refused(tiny_shards: Path, tmp_path: Path, damage, message) -> None:
    root = shutil.copytree(tiny_shards, tmp_path / "shards")
    (path,) = root.glob("train-*.index")
    damage(path)
    with pytest.raises(ShardSetError, match=rf"^{path}: {message}\. Copy or build the set again\.$"):
        ShardSplit(root, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.replace(b"-index 1 ", b"-index 3 "), "expected version 2 of the index, found 3"),
        (lambda data: b"PK" + data[2:], "this file is not the index of a split"),
        (lambda data: data.replace(b'"split":"train"', b'"split":"test" '), "damaged or that of another split, test"),
        (lambda data: data.replace(b'"units":[', b'"units": '), "this index is damaged"),
        (lambda data: data[:-64], "this index is damaged"),
        (lambda _: encode_index(made_up(2), "train"), "does not fit the shards that the manifest lists"),
    ],
)
def test_an_index_that_is_listed_but_wrong_is_refused(tiny_shards: Path, tmp_path: Path, change, message) -> None:
    root = shutil.copytree(tiny_shards, tmp_path / "shards")
    tree = read_manifest(root).tree
    entry = tree["splits"]["train"]["index"]
    data = change((root / entry["name"]).read_bytes())
    (root / entry["name"]).write_bytes(data)
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(root / "manifest.json", tree | {"manifest_sha256": hash_manifest(tree)})
    with pytest.raises(ShardSetError, match=rf"{entry['name']}: .*{message}"):
        ShardSplit(root, "train")


def test_the_manifest_lists_the_indices_and_its_hash_covers_them(tiny_shards: Path) -> None:
    tree = json.loads((tiny_shards / "manifest.json").read_text())
    for split in SPLITS:
        entry = tree["splits"][split]["index"]
        data = (tiny_shards / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert entry["name"] == f"{split}-{entry['sha256'][:12]}.index"
    assert tree["manifest_sha256"] == hash_manifest(tree)


def test_samples_of_unequal_sizes_are_refused() -> None:
    sizes = np.array([[600, 1200, 10, 0], [601, 1200, 10, 0]])
    keys = np.array([b"a-s-real-0-x000", b"a-s-real-0-x001"])
    with pytest.raises(ShardSetError, match=r"^set: expected low.npy members of 600 bytes.* found one of 601 bytes"):
        index_shards([ShardIndex(keys, sizes, sizes)], None, "set")


def test_keys_that_are_not_ours_are_refused() -> None:
    sizes = np.array([[600, 1200, 10, 0]])
    with pytest.raises(ShardSetError, match=r"^set: expected a key like"):
        index_shards([ShardIndex(np.array([b"a-s-real-x000"]), sizes, sizes)], None, "set")
