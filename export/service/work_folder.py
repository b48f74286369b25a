"""Folders for uploads, removed when the service ends or, if it was killed, when the next service starts."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "upfield-serve-"
LOCK = "lock"
# A younger folder may belong to a service that is just starting and has not created its lock yet.
NEW_S = 60


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Create a folder that only this user can read, and remove it at the end of the block.

    Folders that dead processes have left behind are removed first.

    Args:
        parent: folder in which to create it.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        # An error means that the folder belongs to another user or has just been removed.
        with suppress(OSError):
            _remove_left_behind(folder)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # If the lock is taken, another service found this folder before it was locked here, and is removing it.
        if _try_lock(lock) is not False:
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_left_behind(folder: Path) -> None:
    """Remove a folder of this user if its process is dead: its lock is free, or it is old and has none.

    If the file system has no locks, the folder stays.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return
    try:
        # The lock could be a symbolic link to another place, or a pipe, which would block when opened.
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if time.time() - status.st_mtime > NEW_S:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        # The lock is held during the removal, so that a starting service cannot use the folder.
        if stat.S_ISREG(os.fstat(lock).st_mode) and _try_lock(lock):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool | None:
    """Try to take a lock. Return True if it was free, False if it is taken, None if the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
