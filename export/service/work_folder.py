"""Folders for what people send: gone when their process ends, or, where it was killed, when the next one starts."""

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
# A folder without a lock may be one that is being made.
NEW_S = 60


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Give a new folder that only this user may look into, and remove it in the end, with those of dead processes.

    Args:
        parent: where to make it.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        # Somebody else's, or just gone.
        with suppress(OSError):
            _remove_left_behind(folder)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # Where it is taken already, another start has found the folder before it was locked, and removes it.
        if _try_lock(lock) is not False:
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_left_behind(folder: Path) -> None:
    """Remove a folder of this user's whose process is dead; where locks are unknown, none is known to be."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return
    try:
        # No link to elsewhere, and no pipe that would be waited for.
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if time.time() - found.st_mtime > NEW_S:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        # Removed while it is locked, so that its owner cannot take it for its own meanwhile.
        if stat.S_ISREG(os.fstat(lock).st_mode) and _try_lock(lock):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool | None:
    """Take a lock and tell whether it was free; None where the file system has none."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
