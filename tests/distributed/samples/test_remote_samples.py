"""With `fetch: samples`, training reads single samples of a remote set, and the same ones as from a local set."""

import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from built_sets import as_by_an_earlier_version
from faulty import FAULTS, Answer, FaultyServer, from_folder, range_of
from remote_reading import cached_bytes, every_value, impatient, open_loader, read_every_sample, values_trained_on
from runs import forked

from upfield.common.errors import EXIT_INPUT, FetchError, InputError, explain_error
from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples import look_ahead
from upfield.distributed.samples.splits import open_splits
from upfield.sharding.shardset.remote import remote_files, sample_queue

# Opening a set tests the store with a range of the first shard. The tests change the second.
SHARD = "train/000001.tar"


@pytest.fixture
def data(http_store: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(remote_files, "FIRST_BACKOFF_S", 0.001)
    return DataConfig(http_store.url, window_shards=2, cache_dir=tmp_path / "cache", fetch_retries=2, fetch="samples")


def fetched(server: FaultyServer, split: str = "train") -> list[tuple[str, int, int]]:
    """Return the ranges that were requested of the shards of a split, without the one that tests the store."""
    return [asked for asked in server.ranges if asked[0].startswith(split) and asked[1:] != (0, 512)]


@pytest.mark.parametrize("fault", FAULTS)
def test_samples_over_http_that_fail_twice_arrive_the_third_time(
    tiny_shards: Path, data: DataConfig, http_store: FaultyServer, fault: str
) -> None:
    http_store.fail(SHARD, [fault, fault])
    assert every_value(impatient(data, fault)) == every_value(DataConfig(tiny_shards))
    assert http_store.asked[SHARD] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_samples_from_s3_that_fail_arrive_the_second_time(
    tiny_shards: Path, data: DataConfig, s3: FaultyServer, fault: str
) -> None:
    data = impatient(replace(data, shards="s3://sets/tiny"), fault)
    s3.fail(SHARD, [fault])
    assert every_value(data) == every_value(DataConfig(tiny_shards))
    assert s3.asked[SHARD] >= 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_reads_the_same_and_caches_no_shard(
    tiny_shards: Path, data: DataConfig, http_store: FaultyServer, num_workers: int
) -> None:
    data = replace(data, batch_size=6, num_workers=num_workers, cache_bytes=100_000)
    local, remote = (
        values_trained_on(replace(data, shards=shards), range(17, 77)) for shards in (tiny_shards, data.shards)
    )
    assert [batch.samples.tolist() for batch in remote] == [batch.samples.tolist() for batch in local]
    assert all(one.low.equal(other.low) for one, other in zip(remote, local, strict=True))
    assert all(one.high.equal(other.high) for one, other in zip(remote, local, strict=True))
    assert cached_bytes(data) < 0.05 * sum(path.stat().st_size for path in tiny_shards.glob("*/*.tar"))


def test_each_epoch_downloads_the_set_once_over_all_ranks(
    data: DataConfig, http_store: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_ahead, "AHEAD_BYTES", 2**15)
    ranks = [values_trained_on(data, range(45, 90), rank, 2) for rank in range(2)]
    assert len(np.unique(np.concatenate([batch.samples for rank in ranks for batch in rank]))) == 180
    ranges = sorted(fetched(http_store))
    assert all(one[0] != other[0] or one[2] <= other[1] for one, other in pairwise(ranges))
    split, _ = open_splits(data)
    assert sum(end - start for _, start, end in ranges) <= sum(entry.bytes for entry in split.entries)


def test_neighbours_in_later_batches_share_requests(
    tiny_shards: Path, data: DataConfig, http_store: FaultyServer
) -> None:
    split, _ = open_splits(data)
    assert len(list(read_every_sample(split, 4))) == 45
    assert len(fetched(http_store)) == len(split.entries)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_of_later_batches_come_while_a_step_is_taken(
    data: DataConfig, http_store: FaultyServer, num_workers: int
) -> None:
    loader = open_loader(replace(data, num_workers=num_workers), range(45))
    next(loader)
    split, _ = open_splits(data)
    needed = sum(stretch.end - stretch.start for stretch in split.stretches(range(180)))
    deadline_s = time.monotonic() + 20
    while sum(end - start for _, start, end in fetched(http_store)) < needed:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    asked = http_store.ranges.copy()
    assert len(list(loader)) == 44
    assert http_store.ranges == asked


def test_requests_in_flight_are_limited(
    data: DataConfig, http_store: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_queue, "DOWNLOADS_AT_ONCE", 5)
    http_store.delay_s = 0.02
    values_trained_on(data, range(45))
    assert http_store.most_at_once == 5


def spoil(server: FaultyServer, name: str, position: int) -> None:
    """Flip a bit of a file in every answer that contains it."""
    right = server.answer

    def answer(path: str, headers: dict[str, str]) -> Answer:
        code, sent, body = right(path, headers)
        start, end = range_of(headers) or (0, len(body))
        if path.endswith(name) and start <= position < end:
            place = position - start
            body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        return code, sent, body

    server.answer = answer


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sample_that_stays_wrong_is_named(data: DataConfig, http_store: FaultyServer, num_workers: int) -> None:
    split, _ = open_splits(data)
    sample = int(split.shard_starts[1]) + 3
    (stretch,) = split.stretches([sample])
    spoil(http_store, SHARD, stretch.start + 2000)
    with pytest.raises(FetchError) as refused:
        values_trained_on(replace(data, num_workers=num_workers), range(45))
    assert str(refused.value).startswith(f"{http_store.url}/{SHARD}: 3 tries to download ")
    assert f"the last error was: sample {split.key(sample)} has CRC-32 " in str(refused.value)
    assert explain_error(refused.value)[1] == EXIT_INPUT


@pytest.mark.parametrize("fault", ["error", "truncation", pytest.param("stall", marks=pytest.mark.slow)])
def test_a_shard_that_stays_bad_is_named(data: DataConfig, http_store: FaultyServer, fault: str) -> None:
    split, _ = open_splits(replace(impatient(data, fault), fetch_retries=1))
    http_store.fail_always(SHARD, fault)
    sample = int(split.shard_starts[1])
    with pytest.raises(FetchError, match=rf"{SHARD}: 2 tries to download sample {split.key(sample)} failed"):
        split.record(sample)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "num_workers"), [(1, 2), (2, 0)])
def test_a_run_consumes_the_same_and_resumes_from_shards(
    data: DataConfig, http_store: FaultyServer, tmp_path: Path, processes: int, num_workers: int
) -> None:
    def run(fetch: str, name: str, *more: str, processes: int = 1) -> list[str]:
        arguments = ("--data.fetch", fetch, "--data.cache_dir", str(data.cache_dir), "--data.window_shards", "2", *more)
        out = tmp_path / name
        with forked(data.shards, out, *arguments, "--data.trace", str(out / "trace.jsonl"), processes=processes) as job:
            assert job.wait() == [0] * processes, job.said
        return (out / "trace.jsonl").read_text().splitlines()

    whole = run("shards", "whole", "--run.max_steps", "9")
    http_store.fail(SHARD, ["truncation", "corruption"])
    workers = ("--data.num_workers", str(num_workers))
    run("samples", "run", "--run.max_steps", "5", *workers, processes=processes)
    assert run("samples", "run", "--run.max_steps", "9", *workers) == whole


def test_a_store_without_ranges_is_refused_before_training(data: DataConfig, http_store: FaultyServer) -> None:
    http_store.ignores_ranges = True
    with pytest.raises(InputError, match=r"/train/000000\.tar: the store does not answer .*--data\.fetch shards"):
        open_splits(data)


def test_a_set_without_checksums_is_refused(
    tiny_shards: Path, data: DataConfig, http_store: FaultyServer, tmp_path: Path
) -> None:
    http_store.answer = from_folder(as_by_an_earlier_version(shutil.copytree(tiny_shards, tmp_path / "set")))
    with pytest.raises(
        InputError, match=r"^http://[^/]*: an earlier version .* without checksums .*--data\.fetch shards"
    ):
        open_splits(data)


def test_a_folder_is_read_as_ever(tiny_shards: Path, data: DataConfig) -> None:
    assert every_value(replace(data, shards=tiny_shards)) == every_value(DataConfig(tiny_shards))
