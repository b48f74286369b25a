"""The journal of an unfinished build, in `OUT/.build`: the lock, the configuration, a record per block.

A block's record is written after its subjects are read and before its first shard. So a shard with a fitting record
need not be built again, and a shard without one is left over from another build.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from upfield.common.errors import InputError
from upfield.common.files import write_json
from upfield.common.locking import try_lock
from upfield.sharding.cohorts.problems import Problem
from upfield.sharding.cohorts.subjects import SPLITS
from upfield.sharding.shardset.shard_index import SUFFIXES

JOURNAL = ".build"
CONFIG = "config.json"
LOCK = "lock"
# A build that ends removes the journal, perhaps at the moment when another one opens it.
MOST_TRIES = 100
# The name of a block's record, as opposed to a temporary file.
RECORD = re.compile(r"[a-z]+-\d+\.json")


@dataclass(frozen=True)
class BlockRecord:
    """The outcome of reading a block's subjects."""

    digest: str
    """Hash of all that decides the block's bytes."""
    sizes: dict[str, int]
    """Name of each of its shards -> samples."""
    problems: list[Problem] = field(default_factory=list)
    """Subjects that were left out, and why."""
    alignments: list[dict[str, Any]] = field(default_factory=list)
    """How real pairs were aligned."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """Fingerprints of the others' files."""


@contextmanager
def lock_build(out: Path) -> Iterator[None]:
    """Hold the lock of the build in `out`. The system releases it when the process ends, even by a kill.

    Raises:
        InputError: another build is running there.
    """
    with _open_lock(out):
        try:
            _remove_leftovers(out)
            yield
        finally:
            _sweep(out)


def _open_lock(out: Path) -> TextIO:
    path = out / JOURNAL / LOCK
    for left in reversed(range(MOST_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except FileNotFoundError:
            if not left:
                raise
            continue
        _lock(lock, out)
        # The build that held the lock before may have removed the file that was just locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()
    raise InputError(f"{out}: other builds keep starting and ending there. Wait for them to end.")


def _remove_leftovers(out: Path) -> None:
    """Remove half-written files. Under the lock, they can only be those of a build that was killed."""
    for folder in (out, out / JOURNAL, *(out / split for split in SPLITS)):
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink()


def _lock(lock: TextIO, out: Path) -> None:
    try:
        free = try_lock(lock, out)
    except OSError:
        lock.close()
        raise
    if not free:
        lock.close()
        raise InputError(f"{out}: another build is running there. Wait for it to end.")


def is_unfinished(out: Path) -> bool:
    """Return whether a build in `out` has begun and not ended."""
    return (out / JOURNAL / CONFIG).is_file()


def begun_config(out: Path) -> dict[str, Any] | None:
    """Return the configuration of the unfinished build in `out`; None if there is no such build."""
    return json.loads((out / JOURNAL / CONFIG).read_text(encoding="utf-8")) if is_unfinished(out) else None


def has_records(out: Path) -> bool:
    """Return whether the unfinished build in `out` has finished any work."""
    return bool(_records(out))


def clear(out: Path, digests: dict[str, str], listed: Iterable[str]) -> int:
    """Remove records and shards of earlier builds that are not part of this one. The lock must be held.

    Args:
        out: folder of the set.
        digests: name of each block -> the digest that its record must have for its shards to be kept.
        listed: shards of the complete set that is being extended; they are not touched.

    Returns:
        Bytes of the shards that are kept and need not be built again.
    """
    keep: set[str] = set()
    for path in _records(out):
        record = read_record(out, path.stem)
        if record is not None and record.digest == digests.get(path.stem):
            keep |= record.sizes.keys()
        else:
            path.unlink()
    listed, finished_bytes = set(listed), 0
    for path in (path for split in SPLITS for path in (out / split).glob("*")):
        name = f"{path.parent.name}/{path.stem}"
        # Files of other names are not ours.
        if path.suffix not in SUFFIXES or not path.stem.isdecimal() or name in listed:
            continue
        if name in keep:
            finished_bytes += path.stat().st_size
        else:
            path.unlink()
    return finished_bytes


def begin(out: Path, config: dict[str, Any]) -> None:
    """Write the configuration, which marks the set or its extension as unfinished. The lock must be held."""
    write_json(out / JOURNAL / CONFIG, config)


def _records(out: Path) -> list[Path]:
    return [path for path in (out / JOURNAL).iterdir() if RECORD.fullmatch(path.name)]


def read_record(out: Path, block: str) -> BlockRecord | None:
    """Read the record of a block; None if it has none, or a damaged one or one of another version."""
    path = out / JOURNAL / f"{block}.json"
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return BlockRecord(**tree | {"problems": [Problem(**problem) for problem in tree["problems"]]})
    except (ValueError, KeyError, TypeError):
        return None


def write_record(out: Path, block: str, record: BlockRecord) -> None:
    """Write the record of a block."""
    write_json(out / JOURNAL / f"{block}.json", asdict(record))


def finish(out: Path) -> None:
    """Empty the journal of a build that is complete. The lock must be held."""
    for path in (out / JOURNAL).iterdir():
        if path.name != LOCK:
            path.unlink()


def _sweep(out: Path) -> None:
    """Remove a journal that holds only the lock, and a set's folder that is empty, as far as permissions allow."""
    journal = out / JOURNAL
    with suppress(OSError):
        if [path.name for path in journal.iterdir()] == [LOCK]:
            shutil.rmtree(journal)
            if not any(out.iterdir()):
                out.rmdir()
