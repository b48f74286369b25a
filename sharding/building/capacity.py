"""Estimate the disk space, memory and open files that a build needs, and check that the machine has them."""

import math
import os
import resource
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from upfield.common.errors import InputError
from upfield.common.progress import say
from upfield.sharding.building.plan import Block
from upfield.sharding.cohorts.subjects import Source, SourceVolume, Subject
from upfield.sharding.configuration import ShardConfig

HALF_BYTES, SINGLE_BYTES = 2, 4
TAR_BLOCK_BYTES, TAR_RECORD_BYTES = 512, 10240
NPY_HEADER_BYTES = 128
RECORD_BYTES, DRAWN_RECORD_BYTES = 1024, 4096
# Index lines of one sample: three names of at most 100 characters, with offsets and sizes.
INDEX_BYTES = 400
# The manifest has a few lines per shard and per subject.
MANIFEST_BYTES, ENTRY_BYTES = 8192, 300
# Upper bound for one single-precision voxel in a compressed NIfTI file.
SAVED_BYTES = 4
# Memory of a worker that has loaded Python, numpy, scipy and nibabel.
WORKER_BYTES = 150e6
# Per voxel of a volume that is being read: the stored, the single-precision and the reoriented copy.
READING_BYTES = 10
# Volumes on the high-field grid that are in memory at the same time, besides the volume from the file.
VOLUMES_AT_ONCE = 5
# Per voxel of a volume that ITK registers and resamples, with room for the larger grid of a rotated volume.
ALIGNING_BYTES = 30
# Per voxel of the high-field grid while a head is rendered.
RENDERING_BYTES = 40
FILES_PER_WORKER, FILES_OF_DRIVER = 8, 48
# Files of Linux control groups, versions 2 and 1: limit, usage, and the name of the part of the usage that is cache.
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def refuse_full_disks(needed: Mapping[Path, float]) -> None:
    """Check that the disks have enough free space; the needs of folders on the same disk are added up.

    Args:
        needed: folder -> bytes to be written into it. Missing folders are created.

    Raises:
        InputError: there is not enough space.
    """
    by_disk: dict[int, list[Path]] = {}
    for folder in needed:
        folder.mkdir(parents=True, exist_ok=True)
        by_disk.setdefault(folder.stat().st_dev, []).append(folder)
    for folders in by_disk.values():
        together, free = sum(needed[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        where = " and ".join(map(str, folders))
        if together > free:
            raise InputError(
                f"{where}: expected {_size(together)} of free disk space, found {_size(free)}. "
                "Free some space, or choose a folder on another disk."
            )
        say(f"{where}: about {_size(max(together, 0))} to write, {_size(free)} free")


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def fitting_jobs(groups: Sequence[Sequence[Subject[SourceVolume]]], config: ShardConfig) -> int:
    """Choose the number of workers, and check that memory and file descriptors suffice for it.

    Args:
        groups: groups of subjects that a worker handles together.
        config: geometry, context and number of workers.

    Returns:
        The number of workers: as configured, or as many as cores and memory allow.

    Raises:
        InputError: there is too little memory, or too few files can be open.
    """
    cores = len(os.sched_getaffinity(0))
    if config.executor == "ray" or not groups:
        return config.jobs or cores
    worker_bytes = max(memory_bytes(subjects, config) for subjects in groups)
    free_bytes = available_bytes()
    fitting = int(free_bytes // worker_bytes)
    jobs = min(config.jobs or min(cores, max(fitting, 1)), len(groups))
    if jobs > fitting:
        remedy = f"Use --jobs {fitting}." if fitting else "Free some memory, or use a smaller --subjects_per_block."
        raise InputError(
            f"--jobs: expected {jobs} x {worker_bytes / 1e9:.1f} GB of free memory, found {free_bytes / 1e9:.1f} GB. "
            f"{remedy}"
        )
    _refuse_few_descriptors(jobs)
    return jobs


def _refuse_few_descriptors(jobs: int) -> None:
    needed = FILES_OF_DRIVER + FILES_PER_WORKER * jobs
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > soft:
        raise InputError(
            f"open files: expected a limit of at least {needed} for {jobs} workers, found {soft}. "
            f"Raise it with ulimit -n (at most {hard}), or use fewer --jobs."
        )


def set_bytes(blocks: Sequence[Block], config: ShardConfig) -> int:
    """Return an upper bound for the bytes of a set with its manifest; it is a few tenths of a percent too high."""
    if not blocks:
        return 0
    entries = sum(block.num_shards + len(block.subjects) for block in blocks)
    return sum(block_bytes(block, config) for block in blocks) + MANIFEST_BYTES + ENTRY_BYTES * entries


def block_bytes(block: Block, config: ShardConfig) -> int:
    """Return an upper bound for the bytes of a block's tars and indices."""
    voxels = config.geometry.high_shape[1] * config.geometry.high_shape[2]
    low, high = (_member_bytes(voxels * channels) for channels in (1 + 2 * config.context, 1))
    each = low + high + TAR_BLOCK_BYTES + INDEX_BYTES
    units = sum(len(subject.units) for subject in block.subjects)
    rendered = sum(len(subject.units) for subject in block.subjects if subject.labels)
    records = RECORD_BYTES * units
    if rendered or config.synthetic.recipe_for(maps=False) != "report":
        records = DRAWN_RECORD_BYTES * units
    total = each * units + records + (high * rendered if config.keep_labels else 0)
    # A tar ends with two empty blocks and is padded to a full record.
    return config.geometry.high_shape[0] * total + block.num_shards * (TAR_RECORD_BYTES + 2 * TAR_BLOCK_BYTES)


def _member_bytes(voxels: int) -> int:
    """Return the bytes of an array of two-byte voxels in a tar."""
    return TAR_BLOCK_BYTES * math.ceil(1 + (NPY_HEADER_BYTES + HALF_BYTES * voxels) / TAR_BLOCK_BYTES)


def volume_bytes(subjects: Iterable[Subject[Source]], config: ShardConfig) -> int:
    """Return an upper bound for the bytes of some subjects' saved volumes."""
    return SAVED_BYTES * sum(_saved_voxels(subject, config) for subject in subjects)


def _saved_voxels(subject: Subject[Source], config: ShardConfig) -> int:
    high, low = (math.prod(shape) for shape in (config.geometry.high_shape, config.geometry.low_shape))
    if config.synthetic.recipe_for(maps=subject.labels is not None) != "report":
        # The grid that a simulated scanner draws is coarser than the high-field grid.
        low = max(low, high)
    # The heads of a label map have a high field and labels of their own.
    return high + low * len(subject.units) if subject.labels is None else (2 * high + low) * len(subject.units)


def memory_bytes(subjects: Sequence[Subject[SourceVolume]], config: ShardConfig) -> float:
    """Estimate a worker's peak memory in bytes: all pairs in half precision, and the subject with the largest files."""
    voxels = math.prod(config.geometry.high_shape)
    volumes = sum(_kept_volumes(subject, config) for subject in subjects)
    at_work = max((subject_bytes(subject, voxels) for subject in subjects), default=0)
    return WORKER_BYTES + HALF_BYTES * voxels * volumes + at_work


def _kept_volumes(subject: Subject[SourceVolume], config: ShardConfig) -> int:
    """Return the number of volumes of a subject that stay in memory until its block is written."""
    if subject.labels is None:
        return 1 + len(subject.units)
    return (3 if config.keep_labels else 2) * len(subject.units)


def subject_bytes(subject: Subject[SourceVolume], grid_voxels: int) -> int:
    """Estimate the peak memory in bytes of making one subject's pairs on a grid of `grid_voxels`."""
    main = math.prod(subject.main_source.header.shape)
    if subject.labels:
        return max(READING_BYTES * main, RENDERING_BYTES * grid_voxels + HALF_BYTES * main)
    low = math.prod(subject.low.header.shape) if subject.low else 0
    resampling = SINGLE_BYTES * (main + VOLUMES_AT_ONCE * grid_voxels)
    aligning = ALIGNING_BYTES * main if subject.align == "rigid" else 0
    return SINGLE_BYTES * low + max(READING_BYTES * main, resampling, aligning)


def available_bytes(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float:
    """Return how many bytes of memory this process can still use within the limits of its control groups.

    Args:
        root: folder of the control groups.
        membership: file that lists the groups of this process.
    """
    free = float(psutil.virtual_memory().available)
    for group in _groups(root, membership):
        for limit, used, cache in CGROUP_FILES:
            if (group / limit).is_file() and (text := (group / limit).read_text().strip()).isdigit():
                # The cache of files that were read is dropped when memory is needed.
                droppable = _statistic(group / "memory.stat", cache)
                free = min(free, int(text) - int((group / used).read_text()) + droppable)
    return free


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of the groups that hold this process, outermost first: each of them may have a limit."""
    yield root
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        group = root / controllers
        for part in Path(name).parts[1:]:
            yield group
            group = group / part
        yield group


def _statistic(path: Path, name: str) -> int:
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
