"""Training from a remote set reads the same data as from a local set, in spite of network faults."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty import FAULTS, Answer, FaultyServer
from remote_reading import cached_bytes, every_value, impatient, values_trained_on
from runs import forked

from upfield.common.errors import EXIT_FAILURE, EXIT_INPUT, FetchError, InputError, ShardSetError, explain_error
from upfield.distributed.configuration import DataConfig, MixConfig
from upfield.distributed.samples.order import SampleOrder
from upfield.distributed.samples.splits import open_splits, refuse_small_cache, sum_largest
from upfield.sharding.shardset.remote import remote_files
from upfield.sharding.shardset.shard_split import ShardSplit

SHARD = "train/000000.tar"


@pytest.fixture
def data(http_store: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(remote_files, "FIRST_BACKOFF_S", 0.001)
    return DataConfig(
        http_store.url,
        window_shards=2,
        cache_dir=tmp_path / "cache",
        cache_bytes=10**9,
        fetch_retries=2,
    )


@pytest.fixture
def s3_data(s3: FaultyServer, data: DataConfig) -> DataConfig:
    return replace(data, shards="s3://sets/tiny")


def test_a_remote_set_reads_as_the_local_one(tiny_shards: Path, data: DataConfig, http_store: FaultyServer) -> None:
    expected = every_value(DataConfig(tiny_shards))
    assert every_value(data) == expected
    http_store.asked.clear()
    assert every_value(data) == expected
    assert http_store.asked == {"/manifest.json": 1}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_over_http_that_fails_twice_arrives_the_third_time(
    tiny_shards: Path, data: DataConfig, http_store: FaultyServer, fault: str
) -> None:
    for name in ("/manifest.json", SHARD, "val/000000.tar"):
        http_store.fail(name, [fault, fault])
    http_store.fail("train/000001.idx", [fault])
    assert every_value(impatient(data, fault)) == every_value(DataConfig(tiny_shards))
    assert http_store.asked[SHARD] >= 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_from_s3_that_fails_twice_arrives_the_third_time(
    tiny_shards: Path, s3_data: DataConfig, s3: FaultyServer, fault: str
) -> None:
    s3.fail(SHARD, [fault] * 2)
    assert every_value(impatient(s3_data, fault)) == every_value(DataConfig(tiny_shards))
    assert s3.asked[SHARD] >= 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_that_stays_bad_is_named(data: DataConfig, http_store: FaultyServer, fault: str) -> None:
    http_store.fail_always(SHARD, fault)
    # The client takes the timeout when it is opened.
    split, _ = open_splits(replace(data, fetch_timeout_s=0.5) if fault == "stall" else data)
    with pytest.raises(FetchError, match=rf"{SHARD}: 3 tries to download \d+ bytes of sha256 ") as refused:
        split.record(0)
    # What the store holds is the user's input, and a connection that fails is not.
    assert explain_error(refused.value)[1] == (EXIT_INPUT if fault == "corruption" else EXIT_FAILURE)
    assert http_store.asked[SHARD] == 3


@pytest.mark.parametrize(("num_workers", "groups"), [(0, 1), (2, 2)])
def test_training_reads_the_same_and_keeps_the_cache_small(
    tiny_shards: Path, data: DataConfig, num_workers: int, groups: int
) -> None:
    data = replace(data, window_shards=1, batch_size=4, num_workers=num_workers, groups=groups)
    with pytest.raises(InputError, match=r"expected at least \d+, for \d windows of 1 shards") as refused:
        open_splits(replace(data, cache_bytes=1))
    least = int(str(refused.value).split("at least ")[1].split(",")[0])
    data = replace(data, cache_bytes=least)
    steps = range(17, 117)
    local = values_trained_on(DataConfig(tiny_shards, batch_size=4, window_shards=1, groups=groups), steps)
    remote = values_trained_on(data, steps)
    assert [batch.samples.tolist() for batch in remote] == [batch.samples.tolist() for batch in local]
    assert all(one.low.equal(other.low) for one, other in zip(remote, local, strict=True))
    assert cached_bytes(data) <= least


@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_reads_its_own_groups_in_spite_of_faults(
    tiny_shards: Path, data: DataConfig, http_store: FaultyServer, fault: str
) -> None:
    local = DataConfig(tiny_shards, batch_size=4, groups=2, window_shards=2)
    order = SampleOrder(3, open_splits(local)[0].shard_sizes, 4, 2, 2)
    own, others = ({f"train/{n:06d}.tar" for n in order.streams[group, 0].piece.shards} for group in (1, 0))
    for name in own:
        http_store.fail(name, [fault])
    for name in others - own:
        http_store.fail_always(name, fault)
    data = replace(impatient(data, fault), batch_size=4, groups=2)
    expected, arrived = (values_trained_on(each, range(20, 90), 1, 2) for each in (local, data))
    assert all(one.high.equal(other.high) for one, other in zip(arrived, expected, strict=True))
    assert {name for name in http_store.asked if name.endswith(".tar")} == own


def test_a_mix_downloads_only_the_shards_with_its_samples(
    tiny_shards: Path, data: DataConfig, http_store: FaultyServer
) -> None:
    data = replace(data, groups=2, mix=MixConfig(cohort={"ixi": 1.0}))
    local = values_trained_on(replace(data, shards=tiny_shards), range(50))
    remote = values_trained_on(data, range(50))
    assert all(one.low.equal(other.low) for one, other in zip(remote, local, strict=True))
    split = ShardSplit(tiny_shards, "train")
    shard_of = np.repeat([f"{entry.name}.tar" for entry in split.entries], split.shard_sizes)
    names = {name for sample, name in enumerate(shard_of) if split.key(sample).startswith("ixi-")}
    assert {name for name in http_store.asked if name.endswith(".tar")} == names


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_node_needs_room_for_the_windows_of_its_own_groups(tiny_shards: Path, nodes: int) -> None:
    manifest = ShardSplit(tiny_shards, "train").manifest
    data = DataConfig("s3://bucket/set", batch_size=4, window_shards=4, groups=4, cache_bytes=1)
    sizes = np.array([entry.samples for entry in manifest.shards("train")])
    order = SampleOrder(0, sizes, 4, 4, 4)
    with pytest.raises(InputError, match=r"expected at least \d+, for 2 windows of 1 shards") as refused:
        refuse_small_cache(data, manifest, order, order.groups_of(0, nodes))
    least = int(str(refused.value).split("at least ")[1].split(",")[0])
    indices = sum(index.bytes for split in ("train", "val") if (index := manifest.index(split)))
    shards = sum_largest(manifest.shards("train"), 8 // nodes) + sum_largest(manifest.shards("val"), 2)
    assert least <= shards + indices
    refuse_small_cache(replace(data, cache_bytes=least), manifest, order, order.groups_of(0, nodes))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://user:secret@host/set", r"^https://host/set: write the address .*without a password"),
        (
            "https://host/set?sig=secret",
            r"^https://host/set: write the address .*without a password or a part after `\?`",
        ),
        ("s3:/bucket/set", r"^s3://bucket/set: write the address with two slashes"),
        (
            "sftp://host/set",
            r"^sftp://host/set: the package for sftp:// is missing .*Install the package that it names\.",
        ),
        ("nonsense://bucket/set", r"^nonsense://bucket/set: this is not an address such as s3://bucket/folder"),
    ],
)
def test_addresses_that_cannot_be_read_are_refused(data: DataConfig, address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_splits(replace(data, shards=address))


def test_a_missing_set_is_refused_without_retries(data: DataConfig, http_store: FaultyServer) -> None:
    with pytest.raises(ShardSetError, match=r"/nowhere/manifest\.json: there is no complete shard set"):
        open_splits(replace(data, shards=f"{http_store.url}/nowhere/"))
    assert sum(http_store.asked.values()) == 1


def test_a_damaged_index_is_refused(data: DataConfig, http_store: FaultyServer) -> None:
    right = http_store.answer

    def damaged(path: str, headers: dict[str, str]) -> Answer:
        code, sent, body = right(path, headers)
        return code, sent, body[:-1] + b"x" if path.endswith(".index") else body

    http_store.answer = damaged
    with pytest.raises(FetchError, match=r"train-\w{12}\.index: .* the file has sha256"):
        open_splits(data)


def run(data: DataConfig, out: Path, *arguments: str, processes: int = 1) -> tuple[list[int | None], str]:
    """Train in forked ranks, and return their exit codes and what they printed."""
    assert data.cache_dir is not None
    arguments = ("--data.window_shards", "2", "--data.groups", "2", "--run.max_steps", "9", *arguments)
    arguments += ("--data.cache_dir", str(data.cache_dir), "--data.fetch_retries", "1", "--data.fetch_timeout_s", "5")
    arguments += ("--data.trace", str(out / "trace.jsonl"))
    with forked(data.shards, out, *arguments, processes=processes) as job:
        return job.wait(), job.said


@pytest.fixture(scope="module")
def local_trace(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("local") / "run"
    codes, said = run(DataConfig(tiny_shards, cache_dir=out / "unused"), out)
    assert codes == [0], said
    assert not (out / "unused").exists()
    return (out / "trace.jsonl").read_text().splitlines()


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_remote_run_consumes_what_a_local_one_does(
    s3_data: DataConfig, s3: FaultyServer, local_trace: list[str], tmp_path: Path, num_workers: int
) -> None:
    s3.fail(SHARD, ["truncation"])
    codes, said = run(s3_data, tmp_path / "run", "--data.num_workers", str(num_workers))
    assert codes == [0], said
    assert (tmp_path / "run" / "trace.jsonl").read_text().splitlines() == local_trace
    assert len(local_trace) == 9


def test_two_ranks_share_the_cache(
    data: DataConfig, http_store: FaultyServer, local_trace: list[str], tmp_path: Path
) -> None:
    codes, said = run(data, tmp_path / "run", processes=2)
    assert codes == [0, 0], said
    assert (tmp_path / "run" / "trace.jsonl").read_text().splitlines() == local_trace
    assert {name: count for name, count in http_store.asked.items() if count > 1} == {"/manifest.json": 2}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_stays_bad_stops_the_run_in_one_line(
    data: DataConfig, http_store: FaultyServer, local_trace: list[str], tmp_path: Path, num_workers: int
) -> None:
    first_key = json.loads(local_trace[0])["keys"][0]
    split, _ = open_splits(data)
    sample = [split.key(number) for number in range(split.num_samples)].index(first_key)
    bad = f"{split.entries[int(np.searchsorted(split.shard_starts, sample, side='right')) - 1].name}.tar"
    http_store.fail_always(bad, "corruption")
    codes, said = run(data, tmp_path / "run", "--data.num_workers", str(num_workers))
    assert codes == [2], said
    (error,) = (line for line in said.splitlines() if "error" in line)
    assert error.startswith(f"upfield train: error: {http_store.url}/{bad}: 2 tries to download")
    assert "Traceback" not in said
