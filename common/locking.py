"""Locks that the system lets go of when their holder dies, however it dies."""

import errno
import fcntl
from pathlib import Path
from typing import TextIO

from upfield.common.errors import InputError
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
        InputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise InputError(
            f"{folder}: expected a folder that can be written, found: {error.strerror}; choose another {option}"
        ) from error
    if not try_lock(lock, folder):
        lock.close()
        return None
    return lock
