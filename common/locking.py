"""Locks that the system lets go of when their holder dies, however it dies."""

import errno
import fcntl
from pathlib import Path
from typing import TextIO

from upfield.common.errors import UnwritableError
from upfield.common.files import make_writable_folder
from upfield.common.progress import say

LOCK = ".lock"
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def try_lock(file: TextIO, folder: Path) -> bool:
    """Take the lock on an open file, and tell whether it was free; where the file system has no locks, say so.

    Args:
        file: the lock is held until it is closed, or its process is gone.
        folder: what the lock is for, for the message.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        say(f"{folder}: its file system has no locks; see to it that only one process writes there")
    return True


def lock_folder(folder: Path, option: str) -> TextIO | None:
    """Make a folder and take the lock in it, held until the file is closed; None where another process has it.

    Args:
        folder: to be written by one process alone.
        option: that names it, for the message.

    Raises:
        UnwritableError: it cannot be written.
    """
    make_writable_folder(folder, option)
    try:
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise UnwritableError(folder / LOCK, option, error) from error
    if not try_lock(lock, folder):
        lock.close()
        return None
    return lock
