"""Folders for what people send: gone when their process ends, or, where it was killed, when the next one starts."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upfield.sharding.locking import try_lock

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
        if _is_left_behind(folder):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / LOCK).open("w") as lock:
            try_lock(lock, folder)
            yield folder


def _is_left_behind(folder: Path) -> bool:
    try:
        if not (folder / LOCK).exists():
            return time.time() - folder.stat().st_mtime > NEW_S
        with (folder / LOCK).open("a") as lock:
            return try_lock(lock, folder)
    except OSError:
        # Somebody else's, or just gone.
        return False
