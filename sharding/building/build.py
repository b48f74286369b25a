"""Build a shard set: find its subjects, check their headers, plan, write shards and volumes, and write the manifest.

The same steps build a new set, finish an interrupted build, extend a complete set, and save missing volumes. These
cases differ only in the work that is left to do.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError, RunError, VolumeError
from upfield.common.files import check_writable
from upfield.common.progress import say, track
from upfield.common.tables import counted
from upfield.common.tasks import run_tasks
from upfield.sharding.building.align import require_simpleitk
from upfield.sharding.building.block_builder import (
    BlockResult,
    BlockTask,
    VolumeTask,
    build_block,
    finished_record,
    save_volumes,
)
from upfield.sharding.building.capacity import fitting_jobs, refuse_full_disks, set_bytes, volume_bytes
from upfield.sharding.building.folder_comparison import BuildRequest, compare_with_folder, refuse_foreign_folder
from upfield.sharding.building.journal import begin, clear, finish, lock_build
from upfield.sharding.building.manifest_writer import MAP_SETTINGS, Addition, write_manifest
from upfield.sharding.building.pairs.low_field import DEFAULT_CONTRAST
from upfield.sharding.building.pairs.map_pairs import find_map_problem
from upfield.sharding.building.plan import Block, plan_blocks
from upfield.sharding.building.saved_volumes import are_missing
from upfield.sharding.building.voxel_doubts import summarise_stripped, unlike_brains
from upfield.sharding.cohorts.contrasts import find_contrasts
from upfield.sharding.cohorts.people import namesakes_of, shared_people
from upfield.sharding.cohorts.preflight import Preflight, preflight
from upfield.sharding.cohorts.privacy import Pseudonyms, write_names
from upfield.sharding.cohorts.problems import FAULT, TWIN, Problem, noun_of, report
from upfield.sharding.cohorts.quarantine import Quarantine
from upfield.sharding.cohorts.source_fingerprints import find_held_scans, find_same_voxels, seal_fingerprints
from upfield.sharding.cohorts.subjects import Source, SourceVolume, Subject, find_cohorts
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.phantoms.label_map import check_labels_as
from upfield.sharding.physics.sequences import LOW_SEQUENCES
from upfield.sharding.shardset.manifest import hash_tree, is_unfinished

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# With fewer label maps, starting processes takes longer than checking the maps. Each process takes up to 0.4 GB.
MAPS_FOR_PROCESSES, MAP_CHECKERS = 16, 4
# Version of the bytes that a build writes. It is part of the digest that identifies a finished block.
BYTES_VERSION = 3


@dataclass(frozen=True)
class SourceCheck:
    """The subjects that can be used according to their headers."""

    new: list[Subject[SourceVolume]]
    """New subjects, whose samples are to be written."""
    unsaved: list[Subject[SourceVolume]]
    """Subjects of the complete set; only their volumes are to be saved."""
    quarantine: Quarantine
    """The problems of the other subjects."""
    contrasts: dict[str, str | None]
    """Contrast of each configured cohort; None if it is not known."""


@dataclass(frozen=True)
class BuildPlan:
    """The work of a build, after checking that the machine has enough disk space and memory."""

    blocks: list[BlockTask]
    """All blocks of the new subjects; finished ones are not built again."""
    volumes: list[VolumeTask]
    """Subjects whose shards are finished and whose volumes are missing."""
    jobs: int
    """Number of worker processes."""


def build(config: ShardConfig, out: Path, pseudonyms: Pseudonyms | None = None) -> None:
    """Build the set, finish an interrupted build of it, extend it, or report that it is complete.

    Args:
        config: the cohorts, and how they become shards.
        out: folder of the set.
        pseudonyms: replace the names in shards; None keeps the names.

    Raises:
        InputError: cohorts or their files cannot be used, or `out` holds another set.
        RunError: the disk is full, or workers were killed; finished shards are kept.
    """
    if not config.cohorts:
        raise InputError("No cohorts are configured. List them in a file and pass it with --config.")
    # Workers of a cluster run in other folders, so relative paths would not work there.
    out, volumes = out.absolute(), config.save_volumes and config.save_volumes.absolute()
    config = replace(config, save_volumes=volumes)
    if volumes and volumes.exists() and not volumes.is_dir():
        raise InputError(f"--save_volumes: {volumes} is a file, not a folder. Choose another path.")
    _check_labels_as(config)
    files = find_cohorts(config.cohorts, config.root or Path.cwd(), pseudonyms)
    refuse_foreign_folder(out)
    check_writable(out, "--out")
    with _disk_errors(out), lock_build(out):
        request = compare_with_folder(config, out, files, pseudonyms)
        if not request.new_cohorts:
            _say_complete(out)
        elif request.pseudonyms and request.pseudonyms.names:
            rows = [(cohort, name, public) for (cohort, name), public in files.ids.items()]
            write_names(request.pseudonyms.names, rows)
        if request.new_cohorts or request.unsaved_subjects:
            check = check_sources(request)
            plan = plan_build(request, check)
            results = write_blocks(request, plan, check.quarantine)
            if request.new_cohorts:
                seal(request, check, results)


def _check_labels_as(config: ShardConfig) -> None:
    for cohort in config.cohorts:
        try:
            check_labels_as(cohort.labels_as)
        except InputError as error:
            raise InputError(f"cohort {cohort.name}: {error}") from error


def _say_complete(out: Path) -> None:
    if is_unfinished(out):
        say(
            f"{out}: the set is complete, but an extension of it is unfinished. "
            "Run upfield shard with the configuration of the extension to finish it."
        )
    else:
        say(f"{out}: already complete, nothing to do")


def check_sources(request: BuildRequest) -> SourceCheck:
    """Read the headers, and find the subjects that can be used.

    Raises:
        InputError: subjects have problems that the configuration does not allow, or no subject is left.
    """
    config, unsaved = request.config, request.unsaved_subjects
    quarantine = Quarantine(
        config,
        request.out.with_name(f"{request.out.name}.problems.json"),
        sum(cohort in request.new_cohorts for cohort, _ in request.files.ids),
    )
    if any(subject.align == "rigid" for subject in request.new_subjects):
        require_simpleitk()
    # The headers of all cohorts are read, because a new subject must not be a copy of an old one.
    headers = preflight(request.files.subjects if request.new_cohorts else unsaved, config.jobs, config.geometry)
    shown = find_contrasts(config.cohorts, headers.subjects)
    _check_contrasts(config, shown.contrasts)
    headers = Preflight(
        sorted(headers.problems + shown.problems),
        [replace(subject, contrast=shown.contrasts[subject.cohort]) for subject in headers.subjects],
    )
    new = _usable_subjects(request, headers, quarantine) if request.new_cohorts else []
    return SourceCheck(new, [_with_headers(subject, headers) for subject in unsaved], quarantine, shown.contrasts)


def _check_contrasts(config: ShardConfig, contrasts: dict[str, str | None]) -> None:
    """Raise InputError if the physics recipe cannot simulate the contrast of a cohort of scans."""
    if "physics" not in config.synthetic.laws(maps=False):
        return
    for cohort in (cohort for cohort in config.cohorts if cohort.labels is None and cohort.synthetic):
        contrast = contrasts[cohort.name]
        if contrast is None:
            say(
                f"cohort {cohort.name}: the contrast of its scans is not known, so the recipe physics treats them as "
                f"{DEFAULT_CONTRAST}. State `contrast` of the cohort."
            )
        elif contrast not in LOW_SEQUENCES:
            raise InputError(
                f"cohort {cohort.name}: contrast: the recipe physics simulates {', '.join(LOW_SEQUENCES)}, found "
                f"{contrast}. Choose the recipe report."
            )


def _usable_subjects(request: BuildRequest, headers: Preflight, quarantine: Quarantine) -> list[Subject[SourceVolume]]:
    fresh = [subject for subject in headers.subjects if subject.cohort in request.new_cohorts]
    problems = _without_repeats(request.files.problems, headers.problems)
    if request.old:
        faulty = {(problem.cohort, problem.subject) for problem in problems}
        sound = [subject for subject in fresh if (subject.cohort, subject.name) not in faulty]
        problems += find_held_scans(sound, request.old, request.pseudonyms, request.config.jobs)
    problems = [problem for problem in problems if problem.cohort in request.new_cohorts]
    known = {(problem.cohort, problem.subject) for problem in problems if not problem.is_doubt}
    problems += _map_problems(fresh, known, request.config.jobs)
    left_out = {(problem.cohort, problem.subject) for problem in problems if not problem.is_doubt}
    usable = [subject for subject in request.new_subjects if (subject.cohort, subject.name) not in left_out]
    quarantine.namesakes = namesakes_of(usable, request.old, request.pseudonyms)
    quarantine.admit(problems + shared_people(usable))
    healthy = quarantine.healthy(fresh)
    if not healthy:
        raise _no_usable_subjects(request)
    return healthy


def _map_problems(subjects: list[Subject[SourceVolume]], known: set[tuple[str, str]], jobs: int) -> list[Problem]:
    """Check the label maps of subjects that have no `known` problem, because rendering all other heads takes long."""
    maps = [subject for subject in subjects if subject.labels and (subject.cohort, subject.name) not in known]
    workers = 1 if len(maps) < MAPS_FOR_PROCESSES else min(jobs or MAP_CHECKERS, MAP_CHECKERS)
    checked = run_tasks(find_map_problem, maps, workers)
    return [problem for problem in (track(checked, "label maps", len(maps)) if maps else ()) if problem]


def _with_headers(subject: Subject[Source], headers: Preflight) -> Subject[SourceVolume]:
    """Return a subject of the complete set with its headers; raise VolumeError if it has a problem now."""
    for other in headers.subjects:
        if (other.cohort, other.id) == (subject.cohort, subject.id):
            return other
    problem = next(p for p in headers.problems if (p.cohort, p.subject) == (subject.cohort, subject.name))
    raise VolumeError(problem.file, problem.message)


def _no_usable_subjects(request: BuildRequest) -> InputError:
    return InputError(
        f"{request.out}: no subject of {len(request.new_subjects)} can be used. Fix the problems listed above."
    )


def _without_repeats(by_name: list[Problem], by_header: list[Problem]) -> list[Problem]:
    """Combine the problems found in file names and in headers.

    Drop uneven steps and short stacks of subjects with missing slices, which cause both problems.
    """
    gaps = {(problem.cohort, problem.subject) for problem in by_name if problem.check == "slices"}
    return by_name + [p for p in by_header if p.check not in ("steps", "place") or (p.cohort, p.subject) not in gaps]


def plan_build(request: BuildRequest, check: SourceCheck) -> BuildPlan:
    """Divide the work into tasks, remove leftovers of other builds, and check that the machine is large enough.

    Raises:
        InputError: there is too little disk space or memory, or too few files can be open.
    """
    config, out, folder = request.config, request.out, request.config.save_volumes
    blocks = plan_blocks(check.new, config, request.next_shards)
    tasks = [BlockTask(block, _digest(block, request.content), config, out) for block in blocks]
    needed: dict[Path, float] = {}
    if request.new_cohorts:
        finished_bytes = clear(out, {task.block.name: task.digest for task in tasks}, request.old_shards)
        needed[out] = set_bytes(blocks, config) - finished_bytes
    volumes_only = check.unsaved + [subject for task in tasks for subject in _without_volumes(task)]
    if folder:
        missing = [subject for subject in check.new if are_missing(folder, subject)] + check.unsaved
        needed[folder] = volume_bytes(missing, config)
    refuse_full_disks(needed)
    jobs = fitting_jobs([block.subjects for block in blocks] + [(subject,) for subject in volumes_only], config)
    return BuildPlan(tasks, [VolumeTask(subject, config) for subject in volumes_only], jobs)


def _without_volumes(task: BlockTask) -> list[Subject[SourceVolume]]:
    """Return the subjects of a finished block whose volumes are missing; unfinished blocks save theirs when built."""
    folder, record = task.config.save_volumes, finished_record(task)
    if folder is None or record is None:
        return []
    left_out = {(problem.cohort, problem.subject) for problem in record.problems}
    subjects = [subject for subject in task.block.subjects if (subject.cohort, subject.name) not in left_out]
    return [subject for subject in subjects if are_missing(folder, subject)]


def _digest(block: Block, content: dict[str, Any]) -> str:
    """Compute a hash of everything that determines a block's bytes; name, size and mtime represent each file."""
    shared = {key: value for key, value in content.items() if key != "cohorts"}
    cohorts = {cohort["name"]: cohort for cohort in content["cohorts"]}
    recipe = content["synthetic"]["recipe"]
    subjects = [_file_stats(subject, cohorts[subject.cohort], recipe) for subject in block.subjects]
    return hash_tree([BYTES_VERSION, shared, block.name, block.num_shards, subjects])


def _file_stats(subject: Subject[SourceVolume], cohort: dict[str, Any], recipe: str) -> list[Any]:
    def files(volume: SourceVolume | None) -> list[Any]:
        stats = [(path.name, path.stat()) for path in (volume.files if volume else ())]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    units = [[unit.kind, unit.variant] for unit in subject.units]
    how = [subject.fit, subject.align, subject.orientation, subject.main_source.metadata]
    known = [subject.cohort, subject.id, subject.split, units, how, files(subject.low), files(subject.high)]
    if subject.labels:
        return [*known, files(subject.labels), {key: value for key, value in cohort.items() if key in MAP_SETTINGS}]
    return known if recipe == "report" else [*known, subject.contrast]


def write_blocks(request: BuildRequest, plan: BuildPlan, quarantine: Quarantine) -> list[BlockResult]:
    """Run all tasks and return the blocks' results in the order in which they finished.

    A block that cannot be built does not stop the others: all problems with voxels are reported together at the end.

    Raises:
        InputError: subjects have problems that the configuration does not allow.
        RunError: workers were killed, or wrote to the disk of another node.
    """
    out, executor = request.out, request.config.executor
    results: list[BlockResult] = []
    if plan.blocks:
        begin(out, request.content)
        tasks = run_tasks(build_block, plan.blocks, plan.jobs, executor)
        for result in track(tasks, "blocks", len(plan.blocks)):
            results.append(result)
            for shard in result.shards:
                if not (out / f"{shard.entry.name}.tar").is_file():
                    raise RunError(
                        f"{out}: {shard.entry.name}.tar was written to the disk of another node. "
                        "Choose an --out that all nodes of the cluster share."
                    )
            quarantine.note(result.record.problems)
        doubts = [doubt for result in results for doubt in result.record.doubts]
        quarantine.doubt(doubts + unlike_brains(_stripped(results), request.new_subjects))
        quarantine.judge()
    if plan.volumes:
        saving = run_tasks(save_volumes, plan.volumes, plan.jobs, executor)
        unsaved = [problem for problem in track(saving, "volumes", len(plan.volumes)) if problem]
        _refuse_unsaved(sorted(unsaved), len(plan.volumes))
    return results


def _refuse_unsaved(problems: list[Problem], num_subjects: int) -> None:
    """Raise an error if the volumes of some subjects, whose samples are in the set, could not be saved."""
    if not problems:
        return
    say(report(problems))
    message = f"The volumes of {len(problems)} of {counted(num_subjects, 'subject')} could not be saved; see above."
    kind = RunError if any(problem.check == FAULT for problem in problems) else InputError
    raise kind(f"{message} Fix these subjects, and run the same command again.")


def seal(request: BuildRequest, check: SourceCheck, results: list[BlockResult]) -> None:
    """Write the manifest, which makes the set complete, and empty the journal.

    Raises:
        InputError: no subject is left, or two scans hold the same voxels.
    """
    quarantine, pseudonyms = check.quarantine, request.pseudonyms
    shards = sorted((shard for result in results for shard in result.shards), key=lambda shard: shard.entry.name)
    if not shards:
        raise _no_usable_subjects(request)
    trees = [tree for result in results for tree in result.record.sources]
    sources = _by_subject(seal_fingerprints(tree, pseudonyms) for tree in trees)
    quarantine.refuse(_copies(request, sources))
    addition = Addition(
        subjects=quarantine.healthy(check.new),
        shards=shards,
        skipped=quarantine.public_problems(pseudonyms),
        doubts=quarantine.public_doubts(pseudonyms),
        alignments=_by_subject(tree for result in results for tree in result.record.alignments),
        sources=sources,
        stripped=summarise_stripped(_stripped(results)),
        contrasts=check.contrasts,
    )
    finish(request.out, write_manifest(request.out, request.content, addition, request.old))


def _by_subject(trees: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(trees, key=lambda tree: (tree["cohort"], tree["subject"]))


def _stripped(results: list[BlockResult]) -> list[dict[str, Any]]:
    return [tree for result in results for tree in result.record.stripped]


def _copies(request: BuildRequest, sources: list[dict[str, str]]) -> list[Problem]:
    """Find new scans that have the same voxels as another scan in another file."""
    subjects = {(subject.cohort, subject.id): subject for subject in request.new_subjects}
    problems: list[Problem] = []
    for cohort, identifier, field, twin in find_same_voxels(sources, request.old.sources if request.old else []):
        subject = subjects[cohort, identifier]
        source = dict(subject.volumes)[field]
        noun = noun_of(field)
        message = f"this {noun} has the same voxels as another {noun}, in another file. Leave one of them out."
        problems.append(Problem(cohort, subject.name, field, "same", f"{source.paths[0]}{TWIN}{twin}", message))
    return problems


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turn system errors about a disk that is full or cannot be written into errors that say what to do."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise RunError(
            f"{error.filename or out}: the disk cannot be written: {error.strerror}. Free some space or fix the disk, "
            "and run the same command again; finished shards are kept."
        ) from error
