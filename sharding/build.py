"""Build a shard set: find subjects, plan, write the blocks that are not there yet, then the manifest."""

import fcntl
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.atomic import write_json
from upfield.sharding.cohort import Source, Subject, find_subjects
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.errors import InputError, ShardSetError
from upfield.sharding.manifest import MANIFEST, content_config, hash_tree, read_manifest, write_manifest
from upfield.sharding.pairs import Pair, make_pairs
from upfield.sharding.plan import Block, plan_blocks, sample_order
from upfield.sharding.progress import say, track
from upfield.sharding.tarshard import Sample, ShardEntry, hash_file, read_index, write_shard
from upfield.sharding.tasks import run_tasks

BUILD_STATE = "build.json"


@dataclass(frozen=True)
class BlockTask:
    """One block and what a worker needs to build it."""

    block: Block
    """Subjects and shards."""
    config: ShardConfig
    """The whole configuration of the build."""
    out: Path
    """Folder of the set."""


def build(config: ShardConfig, out: Path) -> None:
    """Build the set, finish an interrupted build of it, or find that it is complete.

    Args:
        config: cohorts and how they become shards.
        out: folder of the set.

    Raises:
        InputError: cohorts or their files are not as they should be, or `out` holds another set.
    """
    if not config.cohorts:
        raise InputError("cohorts: expected at least one cohort, found none; give them in a file with --config")
    root = config.root or Path.cwd()
    out = out.absolute()  # Workers of a cluster stand in other folders.
    subjects = [subject for cohort in config.cohorts for subject in find_subjects(cohort, root)]
    blocks = plan_blocks(subjects, config)
    _refuse_shared_files(subjects)
    _say_uneven_stacks(subjects)
    _refuse_foreign_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _refuse_other_set(out, config, subjects)
        if (out / MANIFEST).is_file():
            say(f"{out}: complete already, nothing to do")
            return
        # We hold the lock: half-written files are those of a build that was killed.
        for leftover in out.rglob(".tmp-*"):
            leftover.unlink()
        tasks = [BlockTask(block, config, out) for block in blocks]
        results = run_tasks(build_block, tasks, config.jobs, config.executor)
        entries = [entry for block in track(results, "blocks of subjects", len(tasks)) for entry in block]
        write_manifest(out, config, subjects, sorted(entries, key=lambda entry: entry.name))
        (out / BUILD_STATE).unlink()


def build_block(task: BlockTask) -> list[ShardEntry]:
    """Write those of a block's shards that are not there, and describe them all.

    Runs in a worker; it alone writes these files.
    """
    names = task.block.shard_names
    if all((task.out / f"{name}.tar").is_file() for name in names):
        return [_describe(task.out, name) for name in names]
    pairs: list[Pair] = []
    for subject in task.block.subjects:
        pairs += make_pairs(subject, subject.units, task.config)
    order = np.split(sample_order(task.block, task.config), np.cumsum(task.block.shard_sizes)[:-1])
    return [
        _describe(task.out, name)
        if (task.out / f"{name}.tar").is_file()
        else write_shard(task.out, name, _samples(pairs, numbers, task))
        for name, numbers in zip(names, order, strict=True)
    ]


def _describe(out: Path, name: str) -> ShardEntry:
    tar = out / f"{name}.tar"
    return ShardEntry(name, len(read_index(out / f"{name}.idx").keys), tar.stat().st_size, hash_file(tar))


def _samples(pairs: list[Pair], numbers: NDArray[np.int64], task: BlockTask) -> Iterator[Sample]:
    num_slices = task.config.geometry.high_shape[0]
    metadata = {(subject.cohort, subject.id): subject.high.metadata for subject in task.block.subjects}
    for number in numbers:
        pair, x = pairs[number // num_slices], int(number % num_slices)
        unit = pair.unit
        record: dict[str, Any] = {
            "cohort": unit.cohort,
            "subject": unit.subject,
            "kind": unit.kind,
            "variant": unit.variant,
            "slice": x,
            "parameters": pair.parameters,
        }
        if fields := metadata[unit.cohort, unit.subject]:
            record["metadata"] = fields
        # Slices beyond the border repeat it, as far as the context reaches.
        neighbours = np.clip(np.arange(x - task.config.context, x + task.config.context + 1), 0, num_slices - 1)
        yield Sample(unit.key(x), pair.low[neighbours], pair.high[x : x + 1], record)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process ends, however it ends."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: expected no other build there, found one running; wait for it") from error
        yield


def _refuse_other_set(out: Path, config: ShardConfig, subjects: list[Subject]) -> None:
    """Compare with what `out` holds, complete or begun, and note what is being built."""
    content = content_config(config)
    state = {"config": content, "inputs": hash_tree([_fingerprint(subject) for subject in subjects])}
    if (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        _refuse_difference(out, manifest.tree["config"], content)
        listed = {(s["cohort"], s["subject"]) for split in manifest.tree["splits"].values() for s in split["subjects"]}
        if listed != {(subject.cohort, subject.id) for subject in subjects}:
            raise ShardSetError(
                f"{out}: expected the {len(listed)} subjects it was built from, found {len(subjects)}; "
                "build into a new folder"
            )
    elif (out / BUILD_STATE).is_file() and any(out.glob("*/*.tar")):
        begun = json.loads((out / BUILD_STATE).read_text(encoding="utf-8"))
        _refuse_difference(out, begun["config"], content)
        if begun["inputs"] != state["inputs"]:
            raise ShardSetError(
                f"{out}: expected the input files of the unfinished build there, found them added, removed or changed "
                "since; delete the folder and build again"
            )
    else:
        # Nothing is built yet, so nothing binds: a cohort that was refused may have been mended since.
        write_json(out / BUILD_STATE, state)


def _refuse_foreign_folder(out: Path) -> None:
    """Raise InputError where `out` holds something that is no set of ours; nothing is left in it."""
    if out.is_dir() and not any((out / name).is_file() for name in (MANIFEST, BUILD_STATE)):
        ours = (".lock", f".tmp-*-{BUILD_STATE}")
        if others := [path for path in out.iterdir() if not any(map(path.match, ours))]:
            raise InputError(
                f"{out}: expected a new folder or a shard set, found {others[0].name} and others; choose another --out"
            )


def _refuse_shared_files(subjects: list[Subject]) -> None:
    """Raise InputError where one file is in two splits, under two names or in two cohorts."""
    owners: dict[Path, Subject] = {}
    for subject in subjects:
        for path in (*subject.high.paths, *(subject.low.paths if subject.low else ())):
            owner = owners.setdefault(path.resolve(), subject)
            if owner.split != subject.split:
                names = [f"{s.split} ({s.cohort} {s.id})" for s in (owner, subject)]
                raise InputError(
                    f"{path}: expected each file in one split, found it in {names[0]} and {names[1]}; "
                    "a model would be measured on what it has seen"
                )


def _say_uneven_stacks(subjects: list[Subject]) -> None:
    """Name stacks that have another number of slices than most of their cohort: one may have lost its end."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for subject in subjects:
        for field, source in (("high", subject.high), ("low", subject.low)):
            if source and source.stacked:
                counts.setdefault((subject.cohort, field), {})[subject.id] = len(source.paths)
    for (cohort, field), by_subject in counts.items():
        usual = Counter(by_subject.values()).most_common(1)[0][0]
        for subject, count in by_subject.items():
            if count != usual:
                say(
                    f"cohort {cohort}: {field}: {subject} has {count} slices, most have {usual}; is its stack complete?"
                )


def _refuse_difference(out: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    for key in sorted(there.keys() | asked.keys()):
        if there.get(key) != asked.get(key):
            raise ShardSetError(
                f"{out}: expected the configuration it was built with, found another in {key}: {there.get(key)} there, "
                f"{asked.get(key)} now; build into a new folder"
            )


def _fingerprint(subject: Subject) -> list[Any]:
    def files(source: Source | None) -> list[Any]:
        stats = [(path.name, path.stat()) for path in source.paths] if source else []
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    return [subject.cohort, subject.id, subject.split, files(subject.low), files(subject.high)]
