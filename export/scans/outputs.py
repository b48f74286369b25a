"""Which scans there are, and the file that each becomes."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from upfield.common.errors import InputError
from upfield.common.files import check_writable
from upfield.export.scans.provenance import provenance_path, read_provenance

SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")
OUTPUTS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class EnhanceTask:
    """A scan and the file that it becomes."""

    scan: Path
    """What to read."""
    target: Path
    """What to write; its provenance goes beside it."""


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    jobs: list[EnhanceTask] = field(default_factory=list)
    """In order."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with folders that could not be searched."""
    enhanced: list[Path] = field(default_factory=list)
    """Files in folders that `enhance` itself has made."""


def plan_outputs(scans: Sequence[Path], out: Path, like: Path | None = None) -> Plan:
    """Pair every scan with the file that it becomes; folders keep their inner structure.

    Args:
        scans: files and folders. What is hidden in a folder (its name starts with a dot) is no scan, nor is what lies
            in the output's folder, if that is within, nor what has been enhanced.
        out: a `.nii` or `.nii.gz` file for a single scan, otherwise a folder.
        like: another file that must not be written over.

    Raises:
        InputError: a scan is missing, a folder holds none, two scans would become one file, a file would be written
            over that is not an enhanced one, or `out` cannot be written to.
    """
    plan = Plan()
    jobs = plan.jobs
    is_file = out.name.lower().endswith(OUTPUTS)
    if out.name.lower().endswith(tuple(set(SUFFIXES) - set(OUTPUTS))) and not out.is_dir():
        raise InputError(f"{out}: expected a folder, or a name ending in {' or '.join(OUTPUTS)}, found another file's")
    for scan in scans:
        if scan.is_dir():
            inside = list(_search(scan, out, plan))
            jobs += [EnhanceTask(path, out / as_nifti(path.relative_to(scan))) for path in inside]
            if not inside and not plan.problems:
                found = "enhanced ones only" if plan.enhanced else "none"
                raise InputError(f"{scan}: expected {', '.join(SUFFIXES)} files in the folder, found {found}")
        elif scan.is_file():
            jobs.append(EnhanceTask(scan, out / as_nifti(Path(scan.name))))
        else:
            raise InputError(f"{scan}: expected a NIfTI file or a folder of them, found none; check the path")
    if is_file and len(jobs) > 1:
        raise InputError(f"{out}: expected a folder to write {len(jobs)} scans to, found a file's name")
    if is_file:
        jobs[:] = [EnhanceTask(job.scan, out) for job in jobs]
    _refuse_clashes(jobs, like)
    check_writable(out.parent if is_file else out, "--out")
    return plan


def _search(folder: Path, out: Path, plan: Plan) -> Iterator[Path]:
    """Find the scans in a folder, in the order of their paths, through links to folders as well."""
    out = out.resolve()
    if out == folder.resolve():
        raise InputError(f"{out}: expected another folder than the scans', found the same; choose another --out")
    seen: set[tuple[int, int]] = set()

    def complain(error: OSError) -> None:
        plan.problems.append(f"{error.filename}: expected a folder that can be searched, found: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=complain, followlinks=True):
        here = Path(place)
        if (found := _identity(here)) in seen:
            folders.clear()
            continue
        seen.add(found)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (here / name).resolve() != out)
        for path in (here / name for name in sorted(names) if _is_scan(name)):
            if read_provenance(provenance_path(path)) is None:
                yield path
            else:
                plan.enhanced.append(path)


def _identity(folder: Path) -> tuple[int, int]:
    """Give what tells a folder from all others: a link can lead back to one above it."""
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _is_scan(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def as_nifti(name: Path) -> Path:
    """Give the name of what a scan of this name becomes.

    Raises:
        InputError: no volume is called so.
    """
    suffix = next((suffix for suffix in SUFFIXES if name.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"{name}: expected a file ending in {', '.join(SUFFIXES)}, found another; convert it first")
    return name.with_name(f"{name.name[: -len(suffix)]}.nii.gz")


def _refuse_clashes(jobs: Sequence[EnhanceTask], like: Path | None) -> None:
    originals = {job.scan.resolve() for job in jobs} | ({like.resolve()} if like is not None else set())
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target
        if target.resolve() in originals or _is_foreign(target):
            raise InputError(f"{target}: expected a new file or an enhanced one, found a scan; choose another --out")
        beside = provenance_path(target)
        if beside.exists() and read_provenance(beside) is None:
            raise InputError(f"{beside}: expected a new file or one of enhance's, found another; choose another --out")
        if beside in taken:
            raise InputError(
                f"{target}: expected one scan for each output, found {taken[beside]} and {job.scan}; rename one of them"
            )
        taken[beside] = job.scan


def _is_foreign(target: Path) -> bool:
    """Tell whether something is there that has no provenance of ours beside it, and so is somebody's original."""
    return target.exists() and read_provenance(provenance_path(target)) is None
