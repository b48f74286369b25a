"""Build one block: read its subjects, shuffle their samples together, write its shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import InputError, RunError, VolumeError
from upfield.imaging.slices import neighbour_indices
from upfield.sharding.building.journal import BlockRecord, read_record, write_record
from upfield.sharding.building.pairs.pair import Pair
from upfield.sharding.building.pairs.subject_pairs import make_pairs
from upfield.sharding.building.plan import Block, sample_order
from upfield.sharding.building.saved_volumes import discard
from upfield.sharding.cohorts.problems import FAULT, Problem
from upfield.sharding.cohorts.source_fingerprints import describe_sources
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shardset.shard_index import SUFFIXES
from upfield.sharding.shardset.shard_writer import Sample, WrittenShard, inspect_shard, write_shard


@dataclass(frozen=True)
class BlockTask:
    """Everything that a worker needs to build one block."""

    block: Block
    """The subjects and shards of the block."""
    digest: str
    """Hash of everything that determines the block's bytes."""
    config: ShardConfig
    """The configuration of the build."""
    out: Path
    """Folder of the set."""


@dataclass(frozen=True)
class BlockResult:
    """The outcome of building one block."""

    shards: list[WrittenShard]
    """The shards of the block; empty if it could not be built."""
    record: BlockRecord
    """The outcome of reading the block's subjects."""


@dataclass(frozen=True)
class VolumeTask:
    """One subject whose shards are built and whose volumes must still be saved."""

    subject: Subject[SourceVolume]
    """The subject."""
    config: ShardConfig
    """The configuration of the build, with `save_volumes` set."""


def save_volumes(task: VolumeTask) -> Problem | None:
    """Save the volumes of one subject whose shards are already built; runs in a worker.

    Returns:
        The reason why the subject cannot be saved, or None.
    """
    subject = task.subject
    try:
        make_pairs(subject, task.config)
    except VolumeError as error:
        return _problem(subject, error)
    except (InputError, RunError, OSError, MemoryError):
        raise
    except Exception as error:
        return _fault(subject, error)
    return None


def finished_record(task: BlockTask) -> BlockRecord | None:
    """Return the record of a block whose shards are all in place; None if the block must be built.

    A block on which the program failed is built again, because another version may not fail.
    """
    record = read_record(task.out, task.block.name)
    if record is None or record.digest != task.digest or not all(_is_there(task, name) for name in record.sizes):
        return None
    return None if any(problem.check == FAULT for problem in record.problems) else record


def build_block(task: BlockTask) -> BlockResult:
    """Write the missing shards of a block, and describe all its shards.

    This runs in a worker; no other worker writes these files. If the voxels of a subject cannot be used and `on_error`
    is `skip`, the block holds the samples of its other subjects. If `on_error` is `fail`, the block has no shards.
    """
    if record := finished_record(task):
        return BlockResult([inspect_shard(task.out, name) for name in record.sizes], record)
    previous = read_record(task.out, task.block.name)
    pairs, record = read_pairs(task)
    if record.problems and task.config.on_error == "fail":
        return BlockResult([], record)
    if previous and record != previous:
        # Shards that hold the samples of other subjects must not remain beside the new ones.
        for name in previous.sizes:
            _tar(task, name).unlink(missing_ok=True)
    write_record(task.out, task.block.name, record)
    return BlockResult(_write_missing(task, record, pairs), record)


def read_pairs(task: BlockTask) -> tuple[list[Pair], BlockRecord]:
    """Make the pairs of all subjects of a block, except those whose voxels cannot be used, and record the outcome."""
    pairs: list[Pair] = []
    problems: list[Problem] = []
    doubts: list[Problem] = []
    alignments: list[dict[str, Any]] = []
    stripped: list[dict[str, Any]] = []
    sources: list[dict[str, str]] = []
    for subject in task.block.subjects:
        try:
            source = describe_sources(subject)
            subject_pairs = make_pairs(subject, task.config)
        except VolumeError as error:
            problems.append(_problem(subject, error))
            discard(task.config.save_volumes, subject)
            continue
        except (InputError, RunError, OSError, MemoryError) as error:
            where = f"subject {subject.name} of cohort {subject.cohort}: {subject.main_source}"
            error.add_note(f"The error occurred in {where}")
            raise
        except Exception as error:
            problems.append(_fault(subject, error))
            discard(task.config.save_volumes, subject)
            continue
        pairs += subject_pairs.pairs
        doubts += subject_pairs.doubts
        if subject_pairs.stripped:
            stripped.append({"cohort": subject.cohort, "subject": subject.id} | subject_pairs.stripped)
        sources.append(source | {f"{field}_voxels": digest for field, digest in subject_pairs.voxel_hashes.items()})
        if subject_pairs.alignment:
            alignments.append({"cohort": subject.cohort, "subject": subject.id} | subject_pairs.alignment.to_tree())
    sizes = task.block.shard_sizes(len(pairs) * task.config.geometry.high_shape[0])
    return pairs, BlockRecord(task.digest, sizes, problems, sorted(doubts), alignments, sources, stripped)


def _problem(subject: Subject, error: VolumeError) -> Problem:
    low = [str(subject.low), *map(str, subject.low.paths)] if subject.low else []
    field = "low" if error.where in low else subject.main[0]
    return Problem(subject.cohort, subject.name, field, "voxels", error.where, error.problem)


def _fault(subject: Subject, error: Exception) -> Problem:
    field, source = subject.main
    return Problem.of_fault(subject.cohort, subject.name, field, str(source), error)


def _tar(task: BlockTask, name: str) -> Path:
    return task.out / f"{name}.tar"


def _is_there(task: BlockTask, name: str) -> bool:
    return all((task.out / f"{name}{suffix}").is_file() for suffix in SUFFIXES)


def _write_missing(task: BlockTask, record: BlockRecord, pairs: list[Pair]) -> list[WrittenShard]:
    if not record.sizes:
        return []
    order = sample_order(task.block, sum(record.sizes.values()), task.config.seed)
    parts = np.split(order, np.cumsum(list(record.sizes.values()))[:-1])
    return [
        inspect_shard(task.out, name)
        if _is_there(task, name)
        else write_shard(task.out, name, _samples(pairs, numbers, task))
        for name, numbers in zip(record.sizes, parts, strict=True)
    ]


def _samples(pairs: list[Pair], numbers: NDArray[np.int64], task: BlockTask) -> Iterator[Sample]:
    num_slices = task.config.geometry.high_shape[0]
    metadata = {(subject.cohort, subject.id): subject.main_source.metadata for subject in task.block.subjects}
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
        (neighbours,) = neighbour_indices(np.array([x]), num_slices, task.config.context)
        labels = None if pair.labels is None else pair.labels[x : x + 1]
        yield Sample(unit.key(x), pair.low[neighbours], pair.high[x : x + 1], record, labels)
