"""Locks that the system lets go of when their holder dies, however it dies."""

import errno
import fcntl
from pathlib import Path
from typing import TextIO

from upfield.sharding.progress import say

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
