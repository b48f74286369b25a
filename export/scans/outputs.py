"""Finds the scans to enhance, and chooses an output file for each."""

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
    """A scan and its output."""

    scan: Path
    """File to read."""
    target: Path
    """File to write; its provenance goes beside it."""


@dataclass(frozen=True)
class EnhancePlan:
    """The scans to enhance, and the files and folders that the search skipped."""

    tasks: list[EnhanceTask] = field(default_factory=list)
    """One task per scan, in the order of the command line; within a folder, in the order of the paths."""
    problems: list[str] = field(default_factory=list)
    """Error messages of folders that could not be searched."""
    enhanced: list[Path] = field(default_factory=list)
    """Enhanced scans that were found in the folders and are skipped."""


def plan_outputs(scans: Sequence[Path], out: Path, like: Path | None = None) -> EnhancePlan:
    """Find all scans and choose an output for each; the outputs of a folder keep its subfolders.

    Args:
        scans: files and folders. In folders, hidden files (names that start with a dot), enhanced scans, and everything
            inside the output folder are skipped.
        out: a `.nii` or `.nii.gz` file for a single scan, otherwise a folder.
        like: another file that must not be overwritten.

    Raises:
        InputError: a scan is missing, a folder contains no scan, two scans would have the same output, a file that is
            not an enhanced scan would be overwritten, or `out` cannot be written.
    """
    plan = EnhancePlan()
    tasks = plan.tasks
    is_file = out.name.lower().endswith(OUTPUTS)
    if out.name.lower().endswith(tuple(set(SUFFIXES) - set(OUTPUTS))) and not out.is_dir():
        raise InputError(
            f"{out}: outputs are NIfTI files. Name a folder, or a file that ends in {' or '.join(OUTPUTS)}."
        )
    for scan in scans:
        if scan.is_dir():
            inside = list(_search(scan, out, plan))
            tasks += [EnhanceTask(path, out / as_nifti(path.relative_to(scan))) for path in inside]
            if not inside and not plan.problems:
                only = "only enhanced scans" if plan.enhanced else f"no {', '.join(SUFFIXES)} file"
                raise InputError(f"{scan}: the folder contains {only}. Name a folder that contains scans.")
        elif scan.is_file():
            tasks.append(EnhanceTask(scan, out / as_nifti(Path(scan.name))))
        else:
            raise InputError(f"{scan}: there is no such file or folder. Check the path.")
    if is_file and len(tasks) > 1:
        raise InputError(f"{out}: {len(tasks)} scans cannot be written to one file. Name a folder.")
    if is_file:
        tasks[:] = [EnhanceTask(task.scan, out) for task in tasks]
    _refuse_clashes(tasks, like)
    check_writable(out.parent if is_file else out, "--out")
    return plan


def _search(folder: Path, out: Path, plan: EnhancePlan) -> Iterator[Path]:
    """Yield the scans in a folder in the order of their paths, following links to folders."""
    out = out.resolve()
    if out == folder.resolve():
        raise InputError(f"{out} is the folder of the scans. Choose another --out.")
    seen: set[tuple[int, int]] = set()

    def note_problem(error: OSError) -> None:
        plan.problems.append(
            f"{error.filename}: the folder cannot be searched ({error.strerror}). Change its permissions."
        )

    for place, folders, names in os.walk(folder, onerror=note_problem, followlinks=True):
        here = Path(place)
        if (identity := _identity(here)) in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (here / name).resolve() != out)
        for path in (here / name for name in sorted(names) if _is_scan(name)):
            if read_provenance(provenance_path(path)) is None:
                yield path
            else:
                plan.enhanced.append(path)


def _identity(folder: Path) -> tuple[int, int]:
    """Return a folder's device and inode, which reveal a link back to a parent folder."""
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _is_scan(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def as_nifti(name: Path) -> Path:
    """Return the file name of the enhanced scan for a scan with this name.

    Raises:
        InputError: the name has none of the suffixes of NIfTI and MGH files.
    """
    suffix = next((suffix for suffix in SUFFIXES if name.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"{name}: the name must end in {', '.join(SUFFIXES)}. Convert the file first.")
    return name.with_name(f"{name.name[: -len(suffix)]}.nii.gz")


def _refuse_clashes(tasks: Sequence[EnhanceTask], like: Path | None) -> None:
    originals = {task.scan.resolve() for task in tasks} | ({like.resolve()} if like is not None else set())
    taken: dict[Path, Path] = {}
    for task in tasks:
        target = task.target
        if target.resolve() in originals or _is_foreign(target):
            raise InputError(f"{target} exists and is not an enhanced scan. Choose another --out.")
        sidecar = provenance_path(target)
        if sidecar.exists() and read_provenance(sidecar) is None:
            raise InputError(f"{sidecar} exists and was not written by upfield enhance. Choose another --out.")
        if sidecar in taken:
            raise InputError(
                f"{target} would be written twice, for {taken[sidecar]} and for {task.scan}. Rename one of them."
            )
        taken[sidecar] = task.scan


def _is_foreign(target: Path) -> bool:
    """Return whether `target` exists but has no provenance from `upfield enhance`, and so may be an original scan."""
    return target.exists() and read_provenance(provenance_path(target)) is None
