"""Samples are downloaded in the order of their requests, with their neighbours, and stay until they are read."""

import threading
from collections.abc import Sequence

import pytest

from upfield.sharding.shardset.remote import sample_queue
from upfield.sharding.shardset.remote.sample_queue import QueuedSample, SampleQueue
from upfield.sharding.shardset.shard_files import Stretch
from upfield.sharding.shardset.shard_index import ShardEntry

BYTES, PER_SHARD = 10, 100


class Table:
    """Samples of `BYTES` bytes each, `PER_SHARD` in each shard."""

    split = "train"
    entries = tuple(ShardEntry(f"train/{number:06d}", PER_SHARD, BYTES * PER_SHARD, "") for number in range(2))

    def key(self, sample: int) -> str:
        return str(sample)

    def stretches(self, samples: Sequence[int]) -> list[Stretch]:
        places = [divmod(sample, PER_SHARD) for sample in samples]
        return [Stretch(shard, place * BYTES, (place + 1) * BYTES, 0) for shard, place in places]


class Downloads:
    """Records the runs of neighbours that a queue downloads. The first download waits until `go` is set."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, run: Sequence[QueuedSample]) -> list[memoryview]:
        self.runs.append([queued.key for queued in run])
        self.begun.set()
        self.go.wait()
        return [memoryview(queued.key.encode()) for queued in run]


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


@pytest.fixture
def queue(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> SampleQueue:
    """A queue with one thread, which is busy with sample 50 until `downloads.go` is set."""
    monkeypatch.setattr(sample_queue, "DOWNLOADS_AT_ONCE", 1)
    queue = SampleQueue(downloads)
    queue.request(Table(), [50])
    downloads.begun.wait()
    return queue


def read(queue: SampleQueue, samples: Sequence[int]) -> list[str]:
    return [bytes(queued.arrived.result(timeout=20)).decode() for queued in queue.take(Table(), samples)]


def test_neighbours_in_a_shard_share_a_download(queue: SampleQueue, downloads: Downloads) -> None:
    queue.request(Table(), [7, 99, 8])
    queue.request(Table(), [6, 100, 2])
    downloads.go.set()
    assert read(queue, [2, 7, 99, 6, 100, 8]) == ["2", "7", "99", "6", "100", "8"]
    assert downloads.runs == [["50"], ["6", "7", "8"], ["99"], ["100"], ["2"]]


def test_a_download_is_limited(queue: SampleQueue, downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_queue, "REQUEST_BYTES", 3 * BYTES)
    queue.request(Table(), range(8))
    downloads.go.set()
    read(queue, range(8))
    assert downloads.runs[1:] == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]


def test_a_sample_stays_until_it_was_read_as_often_as_requested(queue: SampleQueue, downloads: Downloads) -> None:
    downloads.go.set()
    queue.request(Table(), [3, 3])
    queue.request(Table(), [3])
    for _ in range(3):
        assert read(queue, [3]) == ["3"]
    assert downloads.runs == [["50"], ["3"]]
    assert read(queue, [3]) == ["3"]
    assert downloads.runs[2:] == [["3"]]


def test_an_error_reaches_every_reader_of_the_download(queue: SampleQueue, downloads: Downloads) -> None:
    def fail(run: Sequence[QueuedSample]) -> list[memoryview]:
        raise ValueError("lost")

    queue.request(Table(), [3, 4])
    queue._download = fail
    downloads.go.set()
    for sample in (3, 4):
        with pytest.raises(ValueError, match="lost"):
            read(queue, [sample])
