"""A folder of shards, bounded in bytes, that all processes of a node share.

Files are named by the sha256 of their shard: two sets, or two states of one set, cannot mix, and an extended set finds
again what it had. Locks are flock's, which the kernel drops however a process ends. In the folder:

    SHA256.tar, .idx         whole files; locked together by those who need them, which keeps them from being evicted
    SHA256.tar.lock          locked by the one process that fetches the file; states the bytes that it needs
    SHA256.tar.part          what has arrived of it
    SHA256.tar.failed        why the last to fetch it gave up
    counting                 locked while bytes are counted and files evicted
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
from upfield.common.files import sync, write_text
from upfield.common.stores import NEVER, TransferCancelledError

WHOLE = (".tar", ".idx")
POLL_S = 0.02
# Ranks of one run wait for one another's windows for about a step; this is for runs that share a folder.
ROOM_WAIT_S = 300.0


@dataclass(frozen=True)
class FileIdentity:
    """A file as it has to be."""

    name: str
    """In the cache."""
    bytes: int | None = None
    """Its size, where it is known before it is there."""
    sha256: str | None = None
    """Of its bytes, where it is known."""


Download = Callable[[Path], None]
"""Writes a file, checked, to the given path, or raises FetchError."""


class ShardCache:
    """The folder. Cheap to send to another process."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Make the folder if it is missing.

        Args:
            folder: on a disk of this node.
            limit_bytes: what all its files together may take.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        # In this process: a disk's faults are found once, at a hundredth of a second a shard.
        self._checked: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def hold(self, file: FileIdentity, bring: Download, stopped: threading.Event = NEVER) -> int:
        """Give a descriptor of a file that keeps it from being evicted until `release`; fetch it if it is absent.

        Args:
            file: what is wanted.
            bring: fetches it; called in one process at a time.
            stopped: ends the waiting.

        Raises:
            FetchError: it could not be fetched, or there is no room for it.
            TransferCancelledError: asked to.
        """
        while (descriptor := self._present(file)) is None:
            self._fetch(file, bring, stopped)
        return descriptor

    def open(self, file: FileIdentity, bring: Download, stopped: threading.Event = NEVER) -> int:
        """Give a descriptor to read a file from; fetch it if it is absent. It may be evicted and stays readable.

        Raises:
            FetchError: it could not be fetched, or there is no room for it.
            TransferCancelledError: asked to.
        """
        descriptor = self.hold(file, bring, stopped)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return descriptor

    def discard(self, file: FileIdentity) -> None:
        """Remove a file that is not what it should be."""
        (self.folder / file.name).unlink(missing_ok=True)

    def _present(self, file: FileIdentity) -> int | None:
        """Give a descriptor under a shared lock if the file is there and whole."""
        path = f"{self.folder}/{file.name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # Between opening and locking it may have been evicted.
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
            os.lseek(descriptor, 0, os.SEEK_SET)  # Both have one position.
            self._checked.add(file.name)
        return True

    def _fetch(self, file: FileIdentity, bring: Download, stopped: threading.Event) -> None:
        """Bring a file into the folder, unless another process did so meanwhile."""
        path = self.folder / file.name
        part = self.folder / f"{file.name}.part"
        asked_at_ns = time.time_ns()
        with self._sole(path, stopped) as lock:
            if path.exists():
                return
            self._refuse_failed(path, asked_at_ns)
            try:
                if file.bytes is not None:
                    self._reserve(path, lock, file.bytes, stopped)
                bring(part)
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
                    f"{self.folder}: expected room for {file.name}, found the disk full; lower --data.cache_bytes "
                    "(the disk holds other things too) or choose another --data.cache_dir"
                ) from error
            finally:
                part.unlink(missing_ok=True)

    def _refuse_failed(self, path: Path, asked_at_ns: int) -> None:
        """Raise FetchError where another process gave up on a file while this one waited to fetch it."""
        with contextlib.suppress(FileNotFoundError):
            if _note(path).stat().st_mtime_ns >= asked_at_ns:
                raise FetchError(_note(path).read_text(encoding="utf-8"))

    def _admit(self, part: Path, path: Path, lock: int) -> None:
        sync(part)
        with self._counting():
            os.replace(part, path)
            os.ftruncate(lock, 0)
        sync(self.folder)
        _note(path).unlink(missing_ok=True)

    @contextmanager
    def _sole(self, path: Path, stopped: threading.Event) -> Iterator[int]:
        """Be the only one, in all processes, to fetch a file; give the lock's descriptor."""
        name = f"{path}.lock"
        while True:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                _lock_alone(descriptor, stopped)
                # The one before may have removed it: then others lock its successor.
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
        """Make sure of room for a file, by evicting others or waiting for those who need them."""
        deadline_s = time.monotonic() + ROOM_WAIT_S
        while True:
            with self._counting():
                lacking = self._make_room(num_bytes)
                if lacking <= 0:
                    os.pwrite(lock, str(num_bytes).encode(), 0)
                    return
            if num_bytes > self.limit_bytes or time.monotonic() > deadline_s:
                raise FetchError(
                    f"{self.folder}: expected room for {path.name} ({num_bytes} bytes), found {lacking} bytes too few: "
                    f"of {self.limit_bytes}, running processes need the rest; raise --data.cache_bytes"
                )
            _pause(POLL_S, stopped)

    def _make_room(self, num_bytes: int) -> int:
        """Evict what was used least recently and is not needed; give the bytes that are still lacking, if positive."""
        self._remove_leftovers()
        lacking = num_bytes - self.limit_bytes
        whole: list[tuple[int, int, str]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                # Files vanish as others finish, or are thrown away as damaged.
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
        """Remove what processes left that were killed while they fetched."""
        for name in os.listdir(self.folder):
            path = self.folder / name
            if name.endswith(".lock"):
                with contextlib.suppress(FileNotFoundError):
                    _evict(str(path), path.with_suffix(".part"))


def release(descriptor: int) -> None:
    """Close a descriptor and give up its lock, which a forked process would otherwise keep."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.failed")


def _leave_note(path: Path, message: str) -> None:
    write_text(_note(path), message)
    # A new file's time is that of the last clock tick, which may lie before others began to wait.
    now_ns = time.time_ns()
    os.utime(_note(path), ns=(now_ns, now_ns))


def _is_at(path: str, descriptor: int) -> bool:
    """Tell whether a name still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _evict(path: str, companion: Path | None = None) -> bool:
    """Remove a file, after another that goes with it, unless somebody holds it."""
    # Some network file systems lock alone only what is open for writing.
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


def _lock_alone(descriptor: int, stopped: threading.Event) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _pause(POLL_S, stopped)


def _pause(seconds: float, stopped: threading.Event) -> None:
    if stopped.wait(seconds):
        raise TransferCancelledError
