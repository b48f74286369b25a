"""The node's cache: bounded, shared by processes, right after any of them is killed."""

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
from upfield.common.stores import Store
from upfield.distributed.samples import cache as cache_module
from upfield.distributed.samples.cache import FileIdentity, ShardCache, release
from upfield.distributed.samples.remote_files import RemoteFiles

SIZE = 1000
FETCH_FIRST_SHARD = """
import os, sys
from pathlib import Path
from upfield.distributed.samples.cache import ShardCache
from upfield.distributed.samples.remote_files import RemoteFiles
from upfield.common.stores import Store
files = RemoteFiles(Store(sys.argv[1], 60), ShardCache(Path(sys.argv[2]), 10**9), 0)
entry = files.manifest().shards("train")[0]
print("ready", flush=True)
print(os.fstat(files.open(entry)).st_size == entry.bytes, flush=True)
"""
OPEN_MANY = """
import random, sys
from pathlib import Path
from upfield.distributed.samples.cache import FileIdentity, ShardCache
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


def bring(number: int, brought: list[int] | None = None) -> Callable[[Path], None]:
    def write(part: Path) -> None:
        part.write_bytes(content_of(number))
        if brought is not None:
            brought.append(number)

    return write


def opened(cache: ShardCache, number: int, brought: list[int] | None = None) -> bytes:
    with os.fdopen(cache.open(file_of(number), bring(number, brought)), "rb") as file:
        return file.read()


def held(cache: ShardCache) -> set[int]:
    return {int(path.stem) for path in cache.folder.glob("*.tar")}


def others(folder: Path) -> list[str]:
    """What there is besides whole files and the lock that stays."""
    return sorted(
        path.name for path in folder.iterdir() if path.suffix not in (".tar", ".idx") and path.name != "counting"
    )


def test_a_file_is_brought_once_and_kept_for_later_runs(tmp_path: Path) -> None:
    brought: list[int] = []
    for _ in range(2):
        cache = ShardCache(tmp_path, 10 * SIZE)
        assert [opened(cache, 1, brought) for _ in range(2)] == [content_of(1)] * 2
    assert brought == [1]
    assert others(tmp_path) == []


def test_what_was_used_least_recently_goes_first_and_the_limit_holds(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3 * SIZE)
    for number in range(3):
        opened(cache, number)
        os.utime(tmp_path / f"{number}.tar", (number, number))
    opened(cache, 0)
    opened(cache, 3)
    assert held(cache) == {0, 2, 3}
    opened(cache, 4)
    assert held(cache) == {0, 3, 4}


def test_what_is_held_is_never_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "ROOM_WAIT_S", 0.0)
    cache = ShardCache(tmp_path, 2 * SIZE)
    first, second = (cache.hold(file_of(number), bring(number)) for number in range(2))
    with pytest.raises(FetchError, match=r"2\.tar.*1000 bytes are missing, .*of the 2000\. .*--data\.cache_bytes"):
        opened(cache, 2)
    release(first)
    assert opened(cache, 2) == content_of(2)
    assert held(cache) == {1, 2}
    release(second)


def test_an_evicted_file_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, SIZE)
    with os.fdopen(cache.open(file_of(1), bring(1)), "rb") as file:
        opened(cache, 2)
        assert held(cache) == {2}
        assert file.read() == content_of(1)


@pytest.mark.parametrize("damage", [b"short", content_of(9)])
def test_a_file_that_the_disk_has_spoilt_is_brought_again(tmp_path: Path, damage: bytes) -> None:
    opened(ShardCache(tmp_path, 10 * SIZE), 1)
    (tmp_path / "1.tar").write_bytes(damage)
    assert opened(ShardCache(tmp_path, 10 * SIZE), 1) == content_of(1)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * SIZE)
    (tmp_path / "7.tar.lock").write_text(str(2 * SIZE))
    (tmp_path / "7.tar.part").write_bytes(bytes(SIZE))
    opened(cache, 1)
    assert others(tmp_path) == []


class Noticed(threading.Event):
    """An event that tells when it is first waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_for.set()
        return super().wait(timeout)


def test_who_waits_for_a_file_that_is_given_up_gives_up_too(tmp_path: Path) -> None:
    cache, noticed, begun = ShardCache(tmp_path, 10 * SIZE), Noticed(), threading.Event()

    def give_up(part: Path) -> None:
        begun.set()
        noticed.waited_for.wait()
        raise FetchError("lost")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.hold, file_of(1), give_up)
        begun.wait()
        second = pool.submit(cache.hold, file_of(1), bring(1), noticed)
        for waiting in (first, second):
            with pytest.raises(FetchError, match="lost"):
                waiting.result()
    assert opened(cache, 1) == content_of(1), "who comes later tries anew"
    assert others(tmp_path) == []


def start(*command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", *command], stdout=subprocess.PIPE, text=True)


def test_several_processes_keep_within_the_limit(tmp_path: Path) -> None:
    processes = [start(OPEN_MANY, str(tmp_path), str(seed)) for seed in range(3)]
    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [0, 0, 0]


def test_two_processes_fetch_a_shard_once(server: FaultyServer, tmp_path: Path) -> None:
    server.fail("train/000000.tar", ["gate"])
    processes = [start(FETCH_FIRST_SHARD, server.url, str(tmp_path)) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    server.stalled.wait()
    server.released.set()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["True\n"] * 2
    assert server.asked["train/000000.tar"] == 1


def test_a_fetch_that_was_killed_leaves_nothing_in_the_way(server: FaultyServer, tmp_path: Path) -> None:
    server.fail("train/000000.tar", ["gate"])
    process = start(FETCH_FIRST_SHARD, server.url, str(tmp_path))
    server.stalled.wait()
    while not list(tmp_path.glob("*.part")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert len(others(tmp_path)) == 2
    files = RemoteFiles(Store(server.url, 60), ShardCache(tmp_path, 10**9), 0)
    entry = files.manifest().shards("train")[0]
    with os.fdopen(files.open(entry), "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    assert others(tmp_path) == []
