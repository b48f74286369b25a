"""Lists of training shards name a set and limit its training split."""

from pathlib import Path

import pytest

from upfield.common.errors import InputError
from upfield.sharding.shardset.configuration import AccessConfig
from upfield.sharding.shardset.shard_list import expand_shard_list, is_shard_list, make_absolute
from upfield.sharding.shardset.shard_set import open_set
from upfield.sharding.shardset.shard_split import ShardSplit


@pytest.mark.parametrize(
    ("place", "root", "names"),
    [
        ("https://host/set/train/{000000..000002}.tar", "https://host/set", ["000000", "000001", "000002"]),
        ("/data/set/train/{a,b}.tar", "/data/set", ["a", "b"]),
        ("s3://b/s/train/{a.tar,b.tar}::s3://b/s/train/c.tar", "s3://b/s", ["a", "b", "c"]),
        ("train/a.tar", ".", ["a"]),
        ("/train/a.tar", "/", ["a"]),
    ],
)
def test_a_list_names_its_set_and_its_shards(place: str, root: str, names: list[str]) -> None:
    assert is_shard_list(place)
    found, expanded = expand_shard_list(place)
    assert (found, list(expanded)) == (root, [f"train/{name}" for name in names])


def test_all_paths_of_a_list_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = make_absolute("set/train/{a,b}.tar::set/train/c.tar")
    assert absolute == f"{tmp_path}/set/train/{{a,b}}.tar::{tmp_path}/set/train/c.tar"
    assert make_absolute("a::b") == tmp_path / "a::b"


@pytest.mark.parametrize("place", ["s3://bucket/set", "/data/{a}/set", "sets/v1.tar/all", "."])
def test_a_set_is_not_a_list(place: str) -> None:
    assert not is_shard_list(place)


def test_a_list_of_all_shards_is_the_set_and_a_shorter_list_is_other_data(tiny_shards: Path) -> None:
    whole = ShardSplit(tiny_shards, "train")
    last = len(whole.entries) - 1
    same = open_set(f"{tiny_shards}/train/{{000000..{last:06d}}}.tar", AccessConfig())
    assert same.manifest.tree == whole.manifest.tree
    part = open_set(f"{tiny_shards}/train/{{000001,000003}}.tar", AccessConfig())
    split = part.split("train")
    assert [entry.name for entry in split.entries] == ["train/000001", "train/000003"]
    assert split.key(0) == whole.key(int(whole.shard_starts[1]))
    assert part.manifest.data_sha256 != whole.manifest.data_sha256
    assert part.split("val").num_samples


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("{000000..999999999999}.tar", r"the range 000000\.\.999999999999 has more than 1000000 shards\. Correct "),
        ("{000000..000009}.tar", r"the set has no shard train/0*7\.tar; it has 7 training shards, train/000000 "),
        ("{000000..000003.tar", r"the braces of this list do not match\. Correct data\.shards\."),
        ("{000000,000000}.tar", r"the shard train/000000\.tar is listed twice"),
        ("000000.tar::elsewhere/train/000000.tar", r"belong to different sets"),
        ("../val/000000.tar", r"expected training shards SET/train/NAME\.tar, found "),
    ],
)
def test_bad_lists_are_refused(tiny_shards: Path, shards: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_set(f"{tiny_shards}/train/{shards}", AccessConfig())
