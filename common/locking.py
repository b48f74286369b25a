"""Lock files. The system releases a lock when its process ends, even if the process was killed.

A lock file is removed while its lock is held. Another process may have opened it before, so a lock counts only if its
path still names the locked file.
"""

import errno
import fcntl
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from upfield.common.errors import InputError, UnwritableError
from upfield.common.files import make_writable_folder
from upfield.common.progress import say

LOCK = ".lock"
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A process that ends removes its lock file, possibly at the moment when another process opens it.
MAX_TRIES = 100


class FolderLock:
    """The lock of a folder, held until it is closed or its process ends. Closing it removes the lock file."""

    def __init__(self, file: TextIO, path: Path) -> None:
        """Keep an open file that is locked, and its path."""
        # If the caller fails before it can close the lock, the end of the program does.
        self._release = weakref.finalize(self, _release, file, path, os.getpid())

    def __enter__(self) -> "FolderLock":
        """Return the lock."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.close()

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        self._release()


def _release(file: TextIO, path: Path, owner: int) -> None:
    # A forked process has a copy of the lock.
    if os.getpid() == owner:
        with suppress(OSError):
            if _is_there(file, path):
                path.unlink()
    file.close()


def _is_there(file: TextIO, path: Path) -> bool:
    """Return whether a path still names an open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def open_lock(path: Path, folder: Path) -> TextIO | None:
    """Open a lock file, which is created with its folder if it is missing, and lock it.

    Args:
        path: the lock file.
        folder: folder that the lock protects, for messages.

    Returns:
        The file, which holds the lock until it is closed; None if another process holds the lock.

    Raises:
        InputError: other processes take and release the lock all the time.
        OSError: the file cannot be created.
    """
    for left in reversed(range(MAX_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except FileNotFoundError:
            if not left:
                raise
            continue
        try:
            free = try_lock(lock, folder)
            if free and _is_there(lock, path):
                return lock
        except OSError:
            lock.close()
            raise
        lock.close()
        if not free:
            return None
    raise InputError(f"{folder}: other processes keep starting and ending there. Wait for them to end.")


def try_lock(file: TextIO, folder: Path) -> bool:
    """Try to lock an open file. If the file system has no locks, print a warning and go on without a lock.

    Args:
        file: open file. The lock is released when the file is closed or the process ends.
        folder: folder that the lock protects, which the warning names.

    Returns:
        False if another process holds the lock; True if it was free or the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        say(f"{folder}: the file system has no locks. Make sure that only one process writes there.")
    return True


def lock_folder(folder: Path, option: str) -> FolderLock | None:
    """Create a folder if it is missing, and lock it.

    Args:
        folder: folder that only one process at a time may write.
        option: option that named the folder, for the message.

    Returns:
        The lock; None if another process holds it.

    Raises:
        InputError: other processes take and release the lock all the time.
        UnwritableError: the folder cannot be written.
    """
    make_writable_folder(folder, option)
    try:
        lock = open_lock(folder / LOCK, folder)
    except OSError as error:
        raise UnwritableError.from_system(folder / LOCK, option, error) from error
    return None if lock is None else FolderLock(lock, folder / LOCK)
