"""The node's cache stays within its limit, is shared by processes, and stays correct if one of them is killed."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty import FaultyServer

from upfield.common.errors import FetchError
from upfield.common.stores.store import Store
from upfield.sharding.shardset.remote.remote_files import RemoteFiles, RemoteFolder
from upfield.sharding.shardset.remote.shard_cache import FileIdentity, ShardCache, release

SIZE = 1000
FETCH_FIRST_SHARD = """
import os, sys
from pathlib import Path
from upfield.sharding.shardset.remote.shard_cache import ShardCache
from upfield.sharding.shardset.remote.remote_files import RemoteFiles, RemoteFolder
from upfield.common.stores.store import Store
files = RemoteFiles(RemoteFolder(Store(sys.argv[1], 60), 0), ShardCache(Path(sys.argv[2]), 10**9))
entry = files.folder.manifest().shards("train")[0]
print("ready", flush=True)
print(os.fstat(files.open(entry)).st_size == entry.bytes, flush=True)
"""
OPEN_MANY = """
import random, sys
from pathlib import Path
from upfield.sharding.shardset.remote.shard_cache import FileIdentity, ShardCache
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
cache = ShardCache(folder, 4000)
for number in random.Random(seed).choices(range(12), k=60):
    cache.open(FileIdentity(f"{number}.tar", 1000), lambda part: part.write_bytes(bytes(1000)))
    with cache._counting():
        assert sum(path.stat().st_size for path in folder.glob("*.tar")) <= 4000
"""


def file_of(number: int) -> FileIdentity:
    return FileIdentity(f"{number}.tar", SIZE, hashlib.sha256(content_of(number)).hexdigest())


def content_of(number: int) -> bytes:
    return bytes([number]) * SIZE


def download(number: int, downloaded: list[int] | None = None) -> Callable[[Path], None]:
    def write(part: Path) -> None:
        part.write_bytes(content_of(number))
        if downloaded is not None:
            downloaded.append(number)

    return write


def read_through(cache: ShardCache, number: int, downloaded: list[int] | None = None) -> bytes:
    with os.fdopen(cache.open(file_of(number), download(number, downloaded)), "rb") as file:
        return file.read()


def held(cache: ShardCache) -> set[int]:
    return {int(path.stem) for path in cache.folder.glob("*.tar")}


def others(folder: Path) -> list[str]:
    """Return the names of all files that are neither complete files nor the permanent lock."""
    return sorted(
        path.name for path in folder.iterdir() if path.suffix not in (".tar", ".idx") and path.name != "counting"
    )


def test_a_file_is_downloaded_once_and_kept_for_later_runs(tmp_path: Path) -> None:
    downloaded: list[int] = []
    for _ in range(2):
        cache = ShardCache(tmp_path, 10 * SIZE)
        assert [read_through(cache, 1, downloaded) for _ in range(2)] == [content_of(1)] * 2
    assert downloaded == [1]
    assert others(tmp_path) == []


def test_the_least_recently_used_file_is_evicted_and_the_limit_holds(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3 * SIZE)
    for number in range(3):
        read_through(cache, number)
        os.utime(tmp_path / f"{number}.tar", (number, number))
    read_through(cache, 0)
    read_through(cache, 3)
    assert held(cache) == {0, 2, 3}
    read_through(cache, 4)
    assert held(cache) == {0, 3, 4}


def test_a_held_file_is_never_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upfield.sharding.shardset.remote.shard_cache.ROOM_WAIT_S", 0.0)
    cache = ShardCache(tmp_path, 2 * SIZE, "--data.")
    first, second = (cache.hold(file_of(number), download(number)) for number in range(2))
    with pytest.raises(FetchError, match=r"2\.tar.*1000 bytes are missing, .*of the 2000\. .*--data\.cache_bytes"):
        read_through(cache, 2)
    release(first)
    assert read_through(cache, 2) == content_of(2)
    assert held(cache) == {1, 2}
    release(second)


def test_an_evicted_file_that_is_open_stays_readable(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, SIZE)
    with os.fdopen(cache.open(file_of(1), download(1)), "rb") as file:
        read_through(cache, 2)
        assert held(cache) == {2}
        assert file.read() == content_of(1)


@pytest.mark.parametrize("damage", [b"short", content_of(9)])
def test_a_file_that_the_disk_has_damaged_is_downloaded_again(tmp_path: Path, damage: bytes) -> None:
    read_through(ShardCache(tmp_path, 10 * SIZE), 1)
    (tmp_path / "1.tar").write_bytes(damage)
    assert read_through(ShardCache(tmp_path, 10 * SIZE), 1) == content_of(1)


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * SIZE)
    (tmp_path / "7.tar.lock").write_text(str(2 * SIZE))
    (tmp_path / "7.tar.part").write_bytes(bytes(SIZE))
    read_through(cache, 1)
    assert others(tmp_path) == []


class WatchedEvent(threading.Event):
    """An event that reports when a thread first waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_for.set()
        return super().wait(timeout)


def test_a_process_that_waits_for_a_failed_download_fails_too(tmp_path: Path) -> None:
    cache, noticed, begun = ShardCache(tmp_path, 10 * SIZE), WatchedEvent(), threading.Event()

    def give_up(part: Path) -> None:
        begun.set()
        noticed.waited_for.wait()
        raise FetchError("lost")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.hold, file_of(1), give_up)
        begun.wait()
        second = pool.submit(cache.hold, file_of(1), download(1), noticed)
        for waiting in (first, second):
            with pytest.raises(FetchError, match="lost"):
                waiting.result()
    assert read_through(cache, 1) == content_of(1), "a later call tries again"
    assert others(tmp_path) == []


def start(*command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", *command], stdout=subprocess.PIPE, text=True)


def test_several_processes_together_stay_within_the_limit(tmp_path: Path) -> None:
    processes = [start(OPEN_MANY, str(tmp_path), str(seed)) for seed in range(3)]
    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [0, 0, 0]


def test_two_processes_fetch_a_shard_once(http_store: FaultyServer, tmp_path: Path) -> None:
    http_store.fail("train/000000.tar", ["gate"])
    processes = [start(FETCH_FIRST_SHARD, http_store.url, str(tmp_path)) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    http_store.stalled.wait()
    http_store.released.set()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["True\n"] * 2
    assert http_store.asked["train/000000.tar"] == 1


def test_a_killed_download_does_not_block_the_next_one(http_store: FaultyServer, tmp_path: Path) -> None:
    http_store.fail("train/000000.tar", ["gate"])
    process = start(FETCH_FIRST_SHARD, http_store.url, str(tmp_path))
    http_store.stalled.wait()
    while not list(tmp_path.glob("*.part")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert len(others(tmp_path)) == 2
    files = RemoteFiles(RemoteFolder(Store(http_store.url, 60), 0), ShardCache(tmp_path, 10**9))
    entry = files.folder.manifest().shards("train")[0]
    with os.fdopen(files.open(entry), "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    assert others(tmp_path) == []
