"""The journal of an unfinished build, in `OUT/.build`: the lock, the configuration, and one record per block.

A block's record is written after its subjects are read and before its first shard. So a shard with a matching record
need not be built again, and a shard without one is a leftover of another build.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from upfield.common.errors import InputError
from upfield.common.files import write_json
from upfield.common.locking import open_lock
from upfield.sharding.cohorts.problems import Problem
from upfield.sharding.shardset.manifest import JOURNAL, JOURNAL_CONFIG, Manifest, is_unfinished
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_index import SUFFIXES
from upfield.sharding.shardset.split_index import INDEX_NAME

LOCK = "lock"
# File name of a block's record. Temporary files do not match.
RECORD = re.compile(r"[a-z]+-\d+\.json")


@dataclass(frozen=True)
class BlockRecord:
    """The outcome of reading a block's subjects."""

    digest: str
    """Hash of everything that determines the block's bytes."""
    sizes: dict[str, int]
    """Name of each shard of the block -> number of its samples."""
    problems: list[Problem] = field(default_factory=list)
    """Problems of the subjects that were left out."""
    doubts: list[Problem] = field(default_factory=list)
    """Doubts about the voxels of the other subjects."""
    alignments: list[dict[str, Any]] = field(default_factory=list)
    """The alignment of each subject whose fields were registered."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """Fingerprints of the files of the other subjects."""
    stripped: list[dict[str, Any]] = field(default_factory=list)
    """Which of their volumes are skull-stripped."""


@contextmanager
def lock_build(out: Path) -> Iterator[None]:
    """Hold the lock of the build in `out`. The system releases it when the process ends, even if it is killed.

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
    lock = open_lock(out / JOURNAL / LOCK, out)
    if lock is None:
        raise InputError(f"{out}: another build is running there. Wait for it to end.")
    return lock


def _remove_leftovers(out: Path) -> None:
    """Remove half-written files. Under the lock, they can only be those of a build that was killed."""
    for folder in (out, out / JOURNAL, *(out / split for split in SPLITS)):
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink()


def begun_config(out: Path) -> dict[str, Any] | None:
    """Return the configuration of the unfinished build in `out`; None if there is no such build."""
    return json.loads((out / JOURNAL / JOURNAL_CONFIG).read_text(encoding="utf-8")) if is_unfinished(out) else None


def has_records(out: Path) -> bool:
    """Return whether the unfinished build in `out` has recorded any block."""
    return bool(_records(out))


def clear(out: Path, digests: dict[str, str], listed: Iterable[str]) -> int:
    """Remove records and shards of earlier builds that are not part of this one. The lock must be held.

    Args:
        out: folder of the set.
        digests: name of each block -> its digest. The shards of a block are kept if its record has this digest.
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
        # Files with other names were not written by a build.
        if path.suffix not in SUFFIXES or not path.stem.isdecimal() or name in listed:
            continue
        if name in keep:
            finished_bytes += path.stat().st_size
        else:
            path.unlink()
    return finished_bytes


def begin(out: Path, config: dict[str, Any]) -> None:
    """Write the configuration, which marks the set or its extension as unfinished. The lock must be held."""
    write_json(out / JOURNAL / JOURNAL_CONFIG, config)


def _records(out: Path) -> list[Path]:
    return [path for path in (out / JOURNAL).iterdir() if RECORD.fullmatch(path.name)]


def read_record(out: Path, block: str) -> BlockRecord | None:
    """Read the record of a block; None if it is missing, damaged or of another version."""
    path = out / JOURNAL / f"{block}.json"
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        # A record of an earlier version has no doubts. Its block is built again.
        found = {key: [Problem(**problem) for problem in tree[key]] for key in ("problems", "doubts")}
        return BlockRecord(**tree | found)
    except (ValueError, KeyError, TypeError):
        return None


def write_record(out: Path, block: str, record: BlockRecord) -> None:
    """Write the record of a block."""
    write_json(out / JOURNAL / f"{block}.json", asdict(record))


def finish(out: Path, manifest: Manifest) -> None:
    """Empty the journal of a build that is complete, and remove the indices of earlier ones. The lock must be held.

    Args:
        out: folder of the set.
        manifest: its new manifest.
    """
    listed = {entry.name for split in SPLITS if (entry := manifest.index(split))}
    for path in out.iterdir():
        if INDEX_NAME.fullmatch(path.name) and path.name not in listed:
            path.unlink()
    for path in (out / JOURNAL).iterdir():
        if path.name != LOCK:
            path.unlink()


def _sweep(out: Path) -> None:
    """Remove the journal if it holds only the lock, and the set's folder if it is empty; ignore permission errors."""
    journal = out / JOURNAL
    with suppress(OSError):
        if [path.name for path in journal.iterdir()] == [LOCK]:
            shutil.rmtree(journal)
            if not any(out.iterdir()):
                out.rmdir()
