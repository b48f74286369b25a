"""With `fetch: samples`, training reads single samples of a remote set, and the same ones as from a local set."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from faulty import FAULTS, Answer, FaultyServer, range_of
from remote_reading import cached_bytes, every_value, impatient, values_trained_on

from upfield.common.errors import FetchError, InputError
from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples import look_ahead
from upfield.distributed.samples.reader import read_every_sample
from upfield.distributed.samples.splits import open_splits
from upfield.sharding.shardset import remote_files, sample_queue

SHARD = "train/000000.tar"


@pytest.fixture
def data(http_store: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(remote_files, "FIRST_BACKOFF_S", 0.001)
    return DataConfig(http_store.url, window_shards=2, cache_dir=tmp_path / "cache", fetch_retries=2, fetch="samples")


def fetched(server: FaultyServer, split: str = "train") -> list[tuple[str, int, int]]:
    """Return the ranges that were requested of the shards of a split, without the one that tests the store."""
    return [asked for asked in server.ranges if asked[0].startswith(split) and asked[1:] != (0, 512)]


@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_samples_over_http_are_those_of_the_local_set(
    tiny_shards: Path, data: DataConfig, http_store: FaultyServer, fault: str
) -> None:
    for name in (SHARD, "val/000000.tar"):
        http_store.fail(name, [fault, fault])
    assert every_value(impatient(data, fault)) == every_value(DataConfig(tiny_shards))


@pytest.mark.parametrize("fault", FAULTS)
def test_samples_from_s3_are_those_of_the_local_set(
    tiny_shards: Path, data: DataConfig, s3: FaultyServer, fault: str
) -> None:
    data = impatient(replace(data, shards="s3://sets/tiny"), fault)
    s3.fail(SHARD, [fault] * 2)
    assert every_value(data) == every_value(DataConfig(tiny_shards))


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
    assert len(list(read_every_sample(split, 4, 0, 1))) == 45
    assert len(fetched(http_store)) == len(split.entries)


def test_requests_in_flight_are_limited(
    data: DataConfig, http_store: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_queue, "DOWNLOADS_AT_ONCE", 5)
    http_store.delay_s = 0.005
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
    (stretch,) = split.stretches([3])
    spoil(http_store, SHARD, stretch.start + 2000)
    with pytest.raises(FetchError) as refused:
        values_trained_on(replace(data, num_workers=num_workers), range(45))
    assert str(refused.value).startswith(f"{http_store.url}/{SHARD}: 3 tries to download ")
    assert f"the last error was: sample {split.key(3)} has CRC-32 " in str(refused.value)


@pytest.mark.parametrize("fault", ["error", "stall", "truncation"])
def test_a_shard_that_stays_bad_is_named(data: DataConfig, http_store: FaultyServer, fault: str) -> None:
    split, _ = open_splits(replace(data, fetch_timeout_s=0.3))
    http_store.fail_always(SHARD, fault)
    with pytest.raises(FetchError, match=rf"{SHARD}: 3 tries to download sample {split.key(5)} failed"):
        split.record(5)


def test_a_store_without_ranges_is_refused_before_training(data: DataConfig, http_store: FaultyServer) -> None:
    http_store.ignores_ranges = True
    with pytest.raises(InputError, match=r"/train/000000\.tar: the store does not answer .*--data\.fetch shards"):
        open_splits(data)


def test_a_folder_is_read_as_ever(tiny_shards: Path, data: DataConfig) -> None:
    assert every_value(replace(data, shards=tiny_shards)) == every_value(DataConfig(tiny_shards))
