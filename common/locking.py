"""Lock files. The system releases a lock when its process ends, even if the process was killed."""

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


def lock_folder(folder: Path, option: str) -> TextIO | None:
    """Create a folder if it is missing, and lock it.

    Args:
        folder: folder that only one process at a time may write.
        option: option that named the folder, for the message.

    Returns:
        The lock file, which holds the lock until it is closed; None if another process holds the lock.

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
