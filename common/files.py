"""Write files that are always either complete or absent, check that a folder can be written, and hash files.

Each file is written under a temporary name, synced, and then renamed.
"""

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError, UnwritableError

SET_CACHE_HOME = "Set XDG_CACHE_HOME to a folder that can be written."
# Stands for the home folder of a user who has none. Nothing can be written below it.
NO_HOME = Path("/dev/null")
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def check_writable(folder: Path, option: str) -> None:
    """Check that files can be created in a folder, without changing anything on the disk.

    If the folder does not exist, the nearest parent that exists is checked instead. The folder itself is not created,
    because another process may be creating it at the same time.

    Args:
        folder: where results will be written.
        option: option that named the folder, for the message.

    Raises:
        UnwritableError: the folder cannot be created or written, or there is a file of this name.
    """
    _probe(folder, folder, option)


def _probe(folder: Path, named: Path, option: str) -> None:
    """Create a temporary file in a folder, or raise UnwritableError with the place that the user named."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UnwritableError.from_system(named, option, error) from error


def check_writable_file(file: Path, option: str, suffixes: Collection[str] = ()) -> None:
    """Check that a file can be written, without changing anything on the disk.

    Args:
        file: the file that will be written. If it exists, it is replaced.
        option: option that named the file, for the message.
        suffixes: endings that its name may have; any if this is empty.

    Raises:
        InputError: the name has another ending, or is that of a folder.
        UnwritableError: the folder of the file cannot be created or written.
    """
    if suffixes and not file.name.lower().endswith(tuple(suffixes)):
        raise InputError(f"{option}: the file name must end in {' or '.join(suffixes)}, found {file}.")
    if file.is_dir():
        raise InputError(f"{option}: {file} is a folder. Choose another name.")
    _probe(file.parent, file, option)


def make_writable_folder(folder: Path, option: str) -> None:
    """Create a folder if it is missing, and check that files can be created in it.

    Args:
        folder: where results will be written.
        option: option that named the folder, for the message.

    Raises:
        UnwritableError: the folder cannot be created or written, or there is a file of this name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError.from_system(folder, option, error) from error
    check_writable(folder, option)


def user_cache_folder(purpose: str, remedy: str = SET_CACHE_HOME) -> Path:
    """Return `upfield/PURPOSE` in the user's cache folder: `$XDG_CACHE_HOME`, or `~/.cache`. It may not exist yet.

    Args:
        purpose: what the folder holds.
        remedy: what the user can do if the user has no home folder.

    Raises:
        InputError: XDG_CACHE_HOME is not set and the user has no home folder, as in many containers.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    except RuntimeError:
        cache = NO_HOME
    if cache.is_relative_to(NO_HOME):
        raise InputError(f"There is no cache folder for {purpose}, because the user has no home folder. {remedy}")
    return cache / "upfield" / purpose


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It is synced and renamed on success, and removed after an error.

    Args:
        path: final path of the file. Its folder is created if it is missing, and an existing file is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays the same, because writers such as nibabel choose the format by it.
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`. It is synced and renamed on success, and removed after an error.

    Args:
        path: final path of the folder, which must not exist yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        os.rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    """Replace the folder `target` with the folder `new`.

    On Linux this is one step, because the system can exchange two names. On other systems, `target` is absent for a
    moment.
    """
    if not target.exists():
        os.rename(new, target)
    elif _exchange(new, target):
        shutil.rmtree(new)
    else:
        aside = new.with_name(f"{new.name}-old")
        os.rename(target, aside)
        os.rename(new, target)
        shutil.rmtree(aside)
    sync(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders. Return False if the system cannot do this."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, completely or not at all; a byte of a file name that is not UTF-8 becomes `\\udcf6`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def point_symlink(link: Path, target: str) -> None:
    """Make `link` a symbolic link to the relative name `target`. An older link is replaced in one step."""
    temporary = link.with_name(f".tmp-{os.getpid()}-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    sync(link.parent)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
