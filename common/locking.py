"""Locks that the system releases when their holder dies, however it dies."""

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
    """Take the lock on an open file if it is free. If the file system has no locks, warn and go on.

    Args:
        file: open file; closing it, or the end of its process, releases the lock.
        folder: folder that the lock protects, for the message.

    Returns:
        Whether the lock was free, or the file system has none.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        say(f"{folder}: its file system has no locks; make sure that only one process writes there")
    return True


def lock_folder(folder: Path, option: str) -> TextIO | None:
    """Create a folder if it is missing, and take the lock in it.

    Args:
        folder: folder that only one process may write.
        option: option that named the folder, for the message.

    Returns:
        The lock, held until this file is closed; None if another process holds it.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    make_writable_folder(folder, option)
    try:
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise UnwritableError.from_system(folder / LOCK, option, error) from error
    if not try_lock(lock, folder):
        lock.close()
        return None
    return lock
