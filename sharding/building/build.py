"""Build, finish or extend a shard set: find subjects, look at their headers, plan, write shards, then the manifest."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError, RunError, ShardSetError
from upfield.common.progress import say, track
from upfield.common.tasks import run_tasks
from upfield.imaging.header import files_of
from upfield.sharding.building.align import require_simpleitk
from upfield.sharding.building.block_builder import BlockResult, BlockTask, build_block
from upfield.sharding.building.capacity import fitting_jobs, refuse_full_disks, set_bytes, volume_bytes
from upfield.sharding.building.journal import (
    JOURNAL,
    alone,
    begin,
    begun_config,
    clear,
    finish,
    has_records,
    is_unfinished,
)
from upfield.sharding.building.plan import Block, plan_blocks
from upfield.sharding.building.saved_volumes import VolumeTask, are_missing, save_volumes
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.privacy import Pseudonyms, write_names
from upfield.sharding.cohorts.problems import TWIN, Problem
from upfield.sharding.cohorts.quarantine import Quarantine
from upfield.sharding.cohorts.source_fingerprints import changed_subjects, held_already, same_voxels, sealed
from upfield.sharding.cohorts.subjects import Found, Source, Subject, find_subjects, join
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shardset.manifest import (
    MANIFEST,
    Addition,
    Manifest,
    content_config,
    hash_tree,
    read_manifest,
    write_manifest,
)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# The bytes that a set of this version holds: part of what a record of finished work is good for.
BYTES_VERSION = 3


@dataclass(frozen=True)
class Asked:
    """What a build is asked for, and what the set has already."""

    content: dict[str, Any]
    """Configuration of the set to be, with the cohorts that it has and those that are new."""
    new: set[str]
    """Cohorts that are not in the set."""
    old: Manifest | None
    """The set that is extended."""


def build(config: ShardConfig, out: Path, pseudonyms: Pseudonyms | None = None) -> None:
    """Build the set, finish an interrupted build of it, extend it, or find that it is complete.

    Args:
        config: cohorts and how they become shards.
        out: folder of the set.
        pseudonyms: what stands in shards in place of names.

    Raises:
        InputError: cohorts or their files are not as they should be, or `out` holds another set.
        RunError: the disk is full, or workers were killed; what is finished is kept.
    """
    if not config.cohorts:
        raise InputError("cohorts: expected at least one cohort, found none; give them in a file with --config")
    root = config.root or Path.cwd()
    # Workers of a cluster stand in other folders.
    out, volumes = out.absolute(), config.save_volumes and config.save_volumes.absolute()
    config = replace(config, save_volumes=volumes)
    if volumes and volumes.exists() and not volumes.is_dir():
        raise InputError(f"--save_volumes: expected a folder, found the file {volumes}; choose another")
    found = join(find_subjects(cohort, root, pseudonyms) for cohort in config.cohorts)
    _refuse_foreign_folder(out)
    with _room(out), alone(out):
        old = read_manifest(out) if (out / MANIFEST).is_file() else None
        if old and begun_config(out) == old.tree["config"]:
            # Killed between its manifest and its end.
            finish(out)
        asked = _compare(out, content_config(config, pseudonyms), old)
        _refuse_other_subjects(out, asked, found)
        _refuse_changed_files(out, asked, found, pseudonyms, config.jobs)
        if asked.new:
            if pseudonyms and pseudonyms.names:
                write_names(pseudonyms.names, [(*who, public) for who, public in found.ids.items()])
            _extend(asked, config, found, out, pseudonyms)
            finish(out)
        elif is_unfinished(out):
            say(f"{out}: complete, but for an extension that is under way; give its own configuration to finish it")
        else:
            say(f"{out}: complete already, nothing to do")
        _save_missing_volumes(config, found.subjects, read_manifest(out))


def _save_missing_volumes(config: ShardConfig, subjects: list[Subject], manifest: Manifest) -> None:
    """Write the volumes of subjects whose shards an earlier build has written without them."""
    if (folder := config.save_volumes) is None:
        return
    held = manifest.subjects_of_all_splits
    missing = [s for s in subjects if (s.cohort, s.id) in held and are_missing(folder, s)]
    if not missing:
        return
    refuse_full_disks({folder: volume_bytes(missing, config.geometry)})
    jobs = fitting_jobs([[subject] for subject in missing], config)
    tasks = [VolumeTask(subject, config) for subject in missing]
    for _ in track(run_tasks(save_volumes, tasks, jobs, config.executor), "volumes", len(tasks)):
        pass


def _extend(asked: Asked, config: ShardConfig, found: Found, out: Path, pseudonyms: Pseudonyms | None) -> None:
    """Check the new cohorts' files, write their shards, then the manifest."""
    fresh = [subject for subject in found.subjects if subject.cohort in asked.new]
    if any(subject.align == "rigid" for subject in fresh):
        require_simpleitk()
    num_subjects = sum(cohort in asked.new for cohort, _ in found.ids)
    quarantine = Quarantine(config, out.with_name(f"{out.name}.problems.json"), num_subjects)
    # All headers, for a new subject must not be an old one over again.
    problems = _once(found.problems, preflight(found.subjects, config.jobs, config.geometry))
    if asked.old:
        odd = {(problem.cohort, problem.subject) for problem in problems}
        sound = [subject for subject in fresh if (subject.cohort, subject.name) not in odd]
        problems += held_already(sound, asked.old, pseudonyms, config.jobs)
    quarantine.admit([problem for problem in problems if problem.cohort in asked.new])
    _tell_namesakes(found.subjects)
    if not (chosen := quarantine.healthy(fresh)):
        raise InputError(f"{out}: expected subjects that can be used, found none of {len(fresh)}")
    blocks = plan_blocks(chosen, config, _taken(asked.old))
    digests = {block.name: _digest(block, asked.content) for block in blocks}
    finished_bytes = clear(out, digests, _listed(asked.old))
    needed = {out: set_bytes(blocks, config) - finished_bytes}
    if config.save_volumes:
        unsaved = [subject for subject in chosen if are_missing(config.save_volumes, subject)]
        needed[config.save_volumes] = volume_bytes(unsaved, config.geometry)
    refuse_full_disks(needed)
    jobs = fitting_jobs([block.subjects for block in blocks], config)
    begin(out, asked.content)
    tasks = [BlockTask(block, digests[block.name], config, out) for block in blocks]
    results = _run(tasks, out, config.executor, jobs, quarantine)
    entries = sorted((entry for result in results for entry in result.entries), key=lambda entry: entry.name)
    if not entries:
        raise InputError(f"{out}: expected subjects that can be used, found none of {len(fresh)}")
    sources = _by_subject(sealed(one, pseudonyms) for result in results for one in result.record.sources)
    quarantine.refuse(_copies(fresh, sources, asked.old))
    addition = Addition(
        subjects=quarantine.healthy(fresh),
        entries=entries,
        skipped=quarantine.public_problems(pseudonyms),
        doubts=quarantine.public_doubts(pseudonyms),
        alignments=_by_subject(one for result in results for one in result.record.alignments),
        sources=sources,
    )
    write_manifest(out, asked.content, addition, asked.old)


def _tell_namesakes(subjects: list[Subject]) -> None:
    """Name subjects of one name in several cohorts that are in different splits: one person may be behind both."""
    splits: dict[str, set[str]] = {}
    for subject in subjects:
        splits.setdefault(subject.name, set()).add(subject.split)
    if names := sorted(name for name, its in splits.items() if len(its) > 1):
        say(
            f"{len(names)} names stand in several cohorts and in different splits ({', '.join(names[:5])}"
            f"{', ...' if names[5:] else ''}); where they are the same people, hold both out with lists in `split`"
        )


def _copies(fresh: list[Subject], sources: list[dict[str, str]], old: Manifest | None) -> list[Problem]:
    """Find scans among the new ones that are others over again, in another file."""
    subjects = {(subject.cohort, subject.id): subject for subject in fresh}
    problems: list[Problem] = []
    for cohort, identifier, field, twin in same_voxels(sources, old.sources if old else []):
        subject = subjects[cohort, identifier]
        source = dict(subject.volumes)[field]
        message = "expected a scan of its own, found the voxels of another one in another file; leave one of them out"
        problems.append(Problem(cohort, subject.name, field, "same", f"{source.paths[0]}{TWIN}{twin}", message))
    return problems


def _by_subject(trees: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(trees, key=lambda tree: (tree["cohort"], tree["subject"]))


def _once(by_name: list[Problem], by_header: list[Problem]) -> list[Problem]:
    """Join problems; what follows from slices that file names have shown to be missing, headers need not repeat."""
    told = {(problem.cohort, problem.subject) for problem in by_name if problem.check == "slices"}
    return by_name + [p for p in by_header if p.check not in ("steps", "place") or (p.cohort, p.subject) not in told]


def _run(tasks: list[BlockTask], out: Path, executor: str, jobs: int, quarantine: Quarantine) -> list[BlockResult]:
    """Build all blocks; give the results as they came.

    A block that is given up does not stop the others: all that is wrong with the voxels is told at the end, at once.
    """
    results: list[BlockResult] = []
    for result in track(run_tasks(build_block, tasks, jobs, executor), "blocks", len(tasks)):
        results.append(result)
        for entry in result.entries:
            if not (out / f"{entry.name}.tar").is_file():
                raise RunError(
                    f"{out}: expected a folder that all nodes of the cluster share, found {entry.name}.tar written "
                    "elsewhere; choose another --out"
                )
        quarantine.note(result.record.problems)
    quarantine.judge()
    return results


def _compare(out: Path, content: dict[str, Any], old: Manifest | None) -> Asked:
    """Find what is new in what is asked for, and refuse what does not fit the set or the unfinished build in `out`."""
    held = old.cohorts if old else {}
    if old:
        _refuse_difference(out, old.tree["config"], content)
    new = [cohort for cohort in content["cohorts"] if cohort["name"] not in held]
    content = content | {"cohorts": [*held.values(), *new]}
    if new and (begun := begun_config(out)) is not None and has_records(out):
        _refuse_difference(out / JOURNAL, begun, content)
        names = [[cohort["name"] for cohort in tree["cohorts"]] for tree in (begun, content)]
        if names[0] != names[1]:
            raise ShardSetError(
                f"{out / JOURNAL}: expected the cohorts of the unfinished build, {names[0]}, found {names[1]}; give "
                "those, or remove this folder to drop the unfinished work"
            )
    return Asked(content, {cohort["name"] for cohort in new}, old)


def _refuse_difference(out: Path, there: dict[str, Any], asked: dict[str, Any], where: str = "") -> None:
    """Compare two configurations, cohorts that both have by name."""
    for key in sorted((there.keys() | asked.keys()) - {"cohorts"}):
        if there.get(key) == asked.get(key):
            continue
        if isinstance(there.get(key), dict) and isinstance(asked.get(key), dict) and key != "split":
            _refuse_difference(out, there[key], asked[key], f"{where}{key}.")
        if key == "pseudonymize":
            found, mend = "another key or none", "give the --pseudonym_key that it was built with"
        else:
            found, mend = (
                f"another in {where}{key}: {there.get(key)} there, {asked.get(key)} now",
                "build into a new folder",
            )
        if out.name == JOURNAL:
            mend += ", or remove this one to drop the unfinished work"
        raise ShardSetError(f"{out}: expected the configuration it was built with, found {found}; {mend}")
    cohorts = [{cohort["name"]: cohort for cohort in tree.get("cohorts", [])} for tree in (there, asked)]
    for name in sorted(cohorts[0].keys() & cohorts[1].keys()):
        _refuse_difference(out, cohorts[0][name], cohorts[1][name], f"cohort {name}: ")


def _refuse_other_subjects(out: Path, asked: Asked, found: Found) -> None:
    """Raise ShardSetError where a cohort that the set has is found with other subjects than the set lists."""
    if asked.old is None:
        return
    there = {(s.cohort, s.id) for s in found.subjects if s.cohort not in asked.new}
    cohorts = {cohort for cohort, _ in there}
    held = {(cohort, subject) for cohort, subject in asked.old.subjects_of_all_splits if cohort in cohorts}
    skipped = {(tree["cohort"], tree["subject"]) for tree in asked.old.skipped}
    for odd, what in (
        (there - held - skipped, "more; give them as a cohort of their own"),
        (held - there, "fewer; bring their files back"),
    ):
        if odd:
            raise ShardSetError(
                f"{out}: expected the {len(held)} subjects it was built from, found {len(odd)} {what}, or build into a "
                f"new folder ({', '.join(sorted(subject for _, subject in odd)[:5])}{', ...' if len(odd) > 5 else ''})"
            )


def _refuse_changed_files(out: Path, asked: Asked, found: Found, pseudonyms: Pseudonyms | None, jobs: int) -> None:
    """Raise ShardSetError where files that the set was built from hold something else by now."""
    if asked.old and (changed := changed_subjects(found.subjects, asked.old, pseudonyms, jobs)):
        names = [f"{subject.cohort} {subject.name}" for subject in changed]
        raise ShardSetError(
            f"{out}: expected the files it was built from, found other content in those of {len(names)} subjects; "
            f"bring them back, or build into a new folder ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        )


def _refuse_foreign_folder(out: Path) -> None:
    """Raise InputError where `out` holds something that is no set of ours; nothing is left in it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder, found a file; choose another --out")
    others = sorted(out.iterdir()) if out.is_dir() else []
    if others and not any((out / name).exists() for name in (MANIFEST, JOURNAL)):
        raise InputError(
            f"{out}: expected a new folder or a shard set, found {others[0].name} and others; choose another --out"
        )


@contextmanager
def _room(out: Path) -> Iterator[None]:
    """Turn the errors of a disk that is full or cannot be written into ones that say what to do."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise RunError(
            f"{error.filename or out}: expected a disk that can be written, found: {error.strerror}; mend that and run "
            "the same command: finished shards are kept"
        ) from error


def _taken(old: Manifest | None) -> dict[str, int]:
    """Give the first free shard number of each split."""
    names = [name.split("/") for name in _listed(old)]
    return {split: 1 + max(int(number) for its, number in names if its == split) for split in {s for s, _ in names}}


def _listed(old: Manifest | None) -> list[str]:
    return [shard["name"] for split in old.tree["splits"].values() for shard in split["shards"]] if old else []


def _digest(block: Block, content: dict[str, Any]) -> str:
    """Give a hash of all that decides a block's bytes: files by name, size and time of change."""
    shared = {key: value for key, value in content.items() if key != "cohorts"}
    subjects = [_file_stats(subject) for subject in block.subjects]
    return hash_tree([BYTES_VERSION, shared, block.name, block.num_shards, subjects])


def _file_stats(subject: Subject) -> list[Any]:
    def files(source: Source | None) -> list[Any]:
        paths = [file for path in source.paths for file in files_of(path)] if source else []
        stats = [(path.name, path.stat()) for path in paths]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    units = [[unit.kind, unit.variant] for unit in subject.units]
    how = [subject.fit, subject.align, subject.orientation, subject.high.metadata]
    return [subject.cohort, subject.id, subject.split, units, how, files(subject.low), files(subject.high)]
