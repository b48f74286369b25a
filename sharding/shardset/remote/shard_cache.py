"""The node's cache: a folder of downloaded shards, limited in bytes, that all processes of a node share.

Files are named after the sha256 of their shard. Shards of different sets, or of different versions of one set, are
therefore never confused, and after a set is extended, its earlier shards are still used. Processes lock files with
flock, because the kernel releases such locks however a process ends. The folder holds:

    SHA256.tar, .idx, .index complete files; a shared lock of a process that needs the file prevents its eviction
    SHA256.tar.lock          locked by the one process that downloads the file; holds the number of bytes it needs
    SHA256.tar.part          the part of the file that has arrived
    SHA256.tar.failed        why the last download failed
    counting                 lock file, locked while a process counts bytes and evicts files

The cache is written by hand because the reader needs local files. From local files, reading by offset reaches 61,611 to
80,366 samples/s, and the fastest other loader reaches 25,380 (benchmarks/tables/reader.txt, no workers). fsspec's own
file caches (version 2026.9) do not limit bytes, lock files between processes, or check a sha256.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upfield.common.errors import FetchError
from upfield.common.files import write_text
from upfield.common.stores.transfer import NEVER, TransferCancelledError

WHOLE = (".tar", ".idx", ".index")
POLL_S = 0.02
# A rank waits about one step until other ranks of its run release their windows. The limit is longer, because other
# runs may share the folder.
ROOM_WAIT_S = 300.0


@dataclass(frozen=True)
class FileIdentity:
    """Name of a file in the cache, and its expected size and checksum."""

    name: str
    """File name in the cache folder."""
    bytes: int | None = None
    """Size in bytes, if it is known before the download."""
    sha256: str | None = None
    """sha256 of the content, if it is known."""


Download = Callable[[Path], object]
"""Function that downloads a file to the given path and checks it. Raises FetchError if this fails."""


class ShardCache:
    """The cache folder."""

    def __init__(self, folder: Path, limit_bytes: int, flag_prefix: str = "--") -> None:
        """Create the folder if it is missing.

        Args:
            folder: cache folder on a disk of this node.
            limit_bytes: maximum number of bytes that all files in the folder may take together.
            flag_prefix: beginning of the flags `cache_dir` and `cache_bytes` in error messages, such as `--data.`.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.flag_prefix = flag_prefix
        # Each process hashes each file once to detect disk faults, which takes a hundredth of a second per shard.
        self._checked: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def hold(self, file: FileIdentity, download: Download, stopped: threading.Event = NEVER) -> int:
        """Download a file if it is absent, and return a descriptor that prevents its eviction until `release`.

        Args:
            file: file to download.
            download: function that downloads the file; only one process calls it at a time.
            stopped: event that the caller sets to cancel the wait.

        Raises:
            FetchError: the download failed, or there is no room for the file.
            TransferCancelledError: `stopped` was set.
        """
        while (descriptor := self._present(file)) is None:
            self._fetch(file, download, stopped)
        return descriptor

    def open(self, file: FileIdentity, download: Download, stopped: threading.Event = NEVER) -> int:
        """Download a file if it is absent, and return a descriptor for reading it.

        The file may be evicted at any time, but it can still be read through the descriptor.

        Raises:
            FetchError: the download failed, or there is no room for the file.
            TransferCancelledError: `stopped` was set.
        """
        descriptor = self.hold(file, download, stopped)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return descriptor

    def discard(self, file: FileIdentity) -> None:
        """Remove a file whose content is wrong."""
        (self.folder / file.name).unlink(missing_ok=True)

    def _present(self, file: FileIdentity) -> int | None:
        """Return a descriptor with a shared lock if the file is present and complete, otherwise None."""
        path = f"{self.folder}/{file.name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # The file may have been evicted between opening and locking.
        if _is_at(path, descriptor):
            if self._is_whole(file, descriptor):
                os.utime(descriptor)
                return descriptor
            self.discard(file)
        release(descriptor)
        return None

    def _is_whole(self, file: FileIdentity, descriptor: int) -> bool:
        if file.bytes not in (None, os.fstat(descriptor).st_size):
            return False
        if file.sha256 is not None and file.name not in self._checked:
            with os.fdopen(os.dup(descriptor), "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                    return False
            # Hashing has moved the file position, which a descriptor and its duplicate share.
            os.lseek(descriptor, 0, os.SEEK_SET)
            self._checked.add(file.name)
        return True

    def _fetch(self, file: FileIdentity, download: Download, stopped: threading.Event) -> None:
        """Download a file into the folder, unless another process has downloaded it in the meantime."""
        path = self.folder / file.name
        part = self.folder / f"{file.name}.part"
        asked_at_ns = time.time_ns()
        with self._only_download(path, stopped) as lock:
            if path.exists():
                return
            self._refuse_failed(path, asked_at_ns)
            try:
                if file.bytes is not None:
                    self._reserve(path, lock, file.bytes, stopped)
                download(part)
                if file.bytes is None:
                    self._reserve(path, lock, part.stat().st_size, stopped)
                self._admit(part, path, lock)
                self._checked.add(file.name)
            except FetchError as error:
                _leave_note(path, str(error))
                raise
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise FetchError(
                    f"{self.folder}: the disk is full, and {file.name} does not fit. Lower "
                    f"{self.flag_prefix}cache_bytes, because the disk also holds other files, or choose another "
                    f"{self.flag_prefix}cache_dir."
                ) from error
            finally:
                part.unlink(missing_ok=True)

    def _refuse_failed(self, path: Path, asked_at_ns: int) -> None:
        """Raise FetchError if another process failed to download a file while this one waited for it."""
        with contextlib.suppress(FileNotFoundError):
            if _note(path).stat().st_mtime_ns >= asked_at_ns:
                raise FetchError(_note(path).read_text(encoding="utf-8"))

    def _admit(self, part: Path, path: Path, lock: int) -> None:
        # The file is not synced to the disk, because a download would wait for that. After a power failure it may be
        # damaged, but each process checks a file before the first use, and downloads it again if it is wrong.
        with self._counting():
            os.replace(part, path)
            os.ftruncate(lock, 0)
        _note(path).unlink(missing_ok=True)

    @contextmanager
    def _only_download(self, path: Path, stopped: threading.Event) -> Iterator[int]:
        """Hold the lock that lets only one process download a file. Yield the lock's descriptor."""
        name = f"{path}.lock"
        while True:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                _lock_exclusively(descriptor, stopped)
                # The previous holder may have removed this lock file, and other processes then lock a new one.
                if _is_at(name, descriptor):
                    os.ftruncate(descriptor, 0)
                    try:
                        yield descriptor
                    finally:
                        os.unlink(name)
                    return
            finally:
                release(descriptor)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        descriptor = os.open(self.folder / "counting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            release(descriptor)

    def _reserve(self, path: Path, lock: int, num_bytes: int, stopped: threading.Event) -> None:
        """Make room for a file: evict other files, or wait until the processes that hold them release them."""
        deadline_s = time.monotonic() + ROOM_WAIT_S
        while True:
            with self._counting():
                lacking = self._make_room(num_bytes)
                if lacking <= 0:
                    os.pwrite(lock, str(num_bytes).encode(), 0)
                    return
            if num_bytes > self.limit_bytes or time.monotonic() > deadline_s:
                raise FetchError(
                    f"{self.folder}: {path.name} ({num_bytes} bytes) does not fit: {lacking} bytes are missing, "
                    f"because running processes need the rest of the {self.limit_bytes}. Raise "
                    f"{self.flag_prefix}cache_bytes."
                )
            _pause(POLL_S, stopped)

    def _make_room(self, num_bytes: int) -> int:
        """Evict the least recently used files that no process holds. Return the number of missing bytes."""
        self._remove_leftovers()
        lacking = num_bytes - self.limit_bytes
        whole: list[tuple[int, int, str]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                # Other processes may remove locks and damaged files at the same time.
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.endswith(WHOLE):
                        whole.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
                    elif entry.name.endswith(".lock"):
                        lacking += int(Path(entry.path).read_bytes() or b"0")
        lacking += sum(size for _, size, _ in whole)
        for _, size, path in sorted(whole):
            if lacking <= 0:
                break
            lacking -= size if _evict(path) else 0
        return lacking

    def _remove_leftovers(self) -> None:
        """Remove the partial files of processes that were killed during a download."""
        for name in os.listdir(self.folder):
            path = self.folder / name
            if name.endswith(".lock"):
                with contextlib.suppress(FileNotFoundError):
                    _evict(str(path), path.with_suffix(".part"))


def release(descriptor: int) -> None:
    """Release the lock of a descriptor and close it. If it were only closed, a forked process would keep the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.failed")


def _leave_note(path: Path, message: str) -> None:
    write_text(_note(path), message)
    # The system sets the time of a new file to the last clock tick, which may be earlier than the time at which other
    # processes began to wait.
    now_ns = time.time_ns()
    os.utime(_note(path), ns=(now_ns, now_ns))


def _is_at(path: str, descriptor: int) -> bool:
    """Return whether a path still refers to the file that is open as `descriptor`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _evict(path: str, companion: Path | None = None) -> bool:
    """Remove a file, and its companion first, unless a process holds the file. Return whether it was removed."""
    # Some network file systems grant exclusive locks only on files that are open for writing.
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, descriptor):
            return False
        if companion:
            companion.unlink(missing_ok=True)
        os.unlink(path)
        return True
    except BlockingIOError:
        return False
    finally:
        release(descriptor)


def _lock_exclusively(descriptor: int, stopped: threading.Event) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _pause(POLL_S, stopped)


def _pause(seconds: float, stopped: threading.Event) -> None:
    if stopped.wait(seconds):
        raise TransferCancelledError
