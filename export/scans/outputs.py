"""Finds the scans to enhance, and chooses an output file for each."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from upfield.common.errors import InputError
from upfield.common.files import check_writable
from upfield.common.places import DICOM_SUFFIXES, SCAN_SUFFIXES, dicom_error, refuse_other_than_scan
from upfield.export.pretrained.packaged_model import model_names
from upfield.export.scans.provenance import provenance_path, read_provenance

SUFFIXES = SCAN_SUFFIXES
# With one of these endings, `--out` was meant as a file, but not of a kind that upfield writes.
OTHER_FILES = {
    *DICOM_SUFFIXES,
    ".mgh",
    ".mgz",
    ".img",
    ".hdr",
    ".mha",
    ".mhd",
    ".nrrd",
    ".npy",
    ".mat",
    ".gz",
    ".zip",
    ".png",
    ".txt",
}
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
    problems: list[InputError] = field(default_factory=list)
    """Errors of folders that could not be searched, and of scans in them that would become the same file."""
    enhanced: list[Path] = field(default_factory=list)
    """Enhanced scans that were found in the folders and are skipped."""
    repeated: list[tuple[Path, Path]] = field(default_factory=list)
    """Further names of scans, each with the name under which the scan is enhanced: links, and files named twice."""


@dataclass(frozen=True)
class _Found:
    """A scan that was found under one of its names."""

    path: Path
    """The name."""
    inside: Path
    """The name relative to the folder that was searched, which decides the output."""
    linked: bool
    """Whether the file, or a folder on the way to it, is a link."""


def plan_outputs(scans: Sequence[Path], out: Path, like: Path | None = None, match: str | None = None) -> EnhancePlan:
    """Find all scans and choose an output for each; the outputs of a folder keep its subfolders.

    A scan that has several names, because of links or because it was given twice, is enhanced once. A name without
    links is preferred, otherwise the first.

    Args:
        scans: files and folders. In folders, hidden files (names that start with a dot), enhanced scans, and everything
            inside the output folder are skipped.
        out: a `.nii` or `.nii.gz` file for a single scan, otherwise a folder.
        like: another file that must not be overwritten.
        match: pattern that scans in folders must match; None takes all. Files that are named are always enhanced.

    Raises:
        InputError: a scan is missing, a folder contains no scan or none that matches, two scans would have the same
            output, a file that is not an enhanced scan would be overwritten, or `out` cannot be written.
    """
    plan = EnhancePlan()
    is_file = out.name.lower().endswith(OUTPUTS)
    if not is_file and out.suffix.lower() in OTHER_FILES and not out.is_dir():
        raise InputError(
            f"{out}: outputs are NIfTI files. Name a folder, or a file that ends in {' or '.join(OUTPUTS)}."
        )
    found: list[_Found] = []
    for scan in scans:
        if scan.is_dir():
            inside = list(_search(scan, out, plan))
            found += _matching(inside, scan, match) if match else inside
            if not inside and not plan.problems:
                refuse_other_than_scan(scan)
                only = "only enhanced scans" if plan.enhanced else f"no {', '.join(SUFFIXES)} file"
                raise InputError(f"{scan}: the folder contains {only}. Name a folder that contains scans.")
        elif scan.is_file():
            refuse_other_than_scan(scan)
            found.append(_Found(scan, Path(scan.name), scan.is_symlink()))
        else:
            remedy = f"Write --model {scan} to use this model" if str(scan) in model_names() else "Check the path"
            raise InputError(f"{scan}: there is no such file or folder. {remedy}.")
    chosen = _once_each(found, plan)
    if is_file and len(chosen) > 1:
        raise InputError(f"{out}: {len(chosen)} scans cannot be written to one file. Name a folder.")
    tasks = [EnhanceTask(scan.path, out if is_file else out / as_nifti(scan.inside)) for scan in chosen]
    _refuse_foreign(tasks, like)
    plan.tasks.extend(_with_own_outputs(tasks, plan))
    check_writable(out.parent if is_file else out, "--out")
    return plan


def _matching(found: list[_Found], folder: Path, match: str) -> list[_Found]:
    """Return the scans in a folder whose names, or with a `/` whose paths below the folder, match a pattern.

    Raises:
        InputError: there are scans, and none matches.
    """
    chosen = [
        scan for scan in found if fnmatchcase(scan.inside.as_posix() if "/" in match else scan.inside.name, match)
    ]
    if found and not chosen:
        names = ", ".join(scan.inside.as_posix() for scan in found[:5]) + (", ..." if len(found) > 5 else "")
        raise InputError(
            f"{folder}: none of the {len(found)} scans matches {match}; the folder contains {names}. Correct --match."
        )
    return chosen


def _once_each(found: Sequence[_Found], plan: EnhancePlan) -> list[_Found]:
    """Return one name of each scan, and note the others in the plan."""
    chosen: dict[str, _Found] = {}
    for scan in found:
        # In contrast to Path.resolve, this accepts a link that leads to itself.
        file = os.path.realpath(scan.path)
        if file not in chosen or (chosen[file].linked and not scan.linked):
            chosen[file] = scan
    kept = {id(scan) for scan in chosen.values()}
    for scan in found:
        if id(scan) not in kept:
            plan.repeated.append((scan.path, chosen[os.path.realpath(scan.path)].path))
    return [scan for scan in found if id(scan) in kept]


def _search(folder: Path, out: Path, plan: EnhancePlan) -> Iterator[_Found]:
    """Yield the scans in a folder in the order of their paths: first those in real folders, then those behind links.

    Each folder is searched once, so that links cannot lead in circles.
    """
    out = out.resolve()
    if out == folder.resolve():
        raise InputError(f"{out} is the folder of the scans. Choose another --out.")
    seen: set[tuple[int, int]] = set()
    links: deque[Path] = deque()

    def note_problem(error: OSError) -> None:
        plan.problems.append(
            InputError(f"{error.filename}: the folder cannot be searched ({error.strerror}). Change its permissions.")
        )

    def walk(start: Path, linked: bool) -> Iterator[_Found]:
        for place, folders, names in os.walk(start, onerror=note_problem):
            here = Path(place)
            if (identity := _identity(here)) in seen:
                folders.clear()
                continue
            seen.add(identity)
            inner = [here / name for name in sorted(folders) if not name.startswith(".")]
            inner = [path for path in inner if path.resolve() != out]
            links.extend(path for path in inner if path.is_symlink())
            folders[:] = [path.name for path in inner if not path.is_symlink()]
            for path in (here / name for name in sorted(names) if _is_scan(name)):
                if read_provenance(provenance_path(path)) is None:
                    yield _Found(path, path.relative_to(folder), linked or path.is_symlink())
                else:
                    plan.enhanced.append(path)

    yield from walk(folder, folder.is_symlink())
    while links:
        yield from walk(links.popleft(), True)


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
    if name.suffix.lower() in DICOM_SUFFIXES:
        raise dicom_error(name, "a DICOM file", name.parent)
    if suffix is None:
        raise InputError(f"{name}: the name must end in {', '.join(SUFFIXES)}. Convert the file first.")
    return name.with_name(f"{name.name[: -len(suffix)]}.nii.gz")


def _refuse_foreign(tasks: Sequence[EnhanceTask], like: Path | None) -> None:
    """Raise InputError if a file would be overwritten that is not an enhanced scan."""
    originals = {os.path.realpath(path) for path in [*(task.scan for task in tasks), *([like] if like else [])]}
    for task in tasks:
        target = task.target
        if os.path.realpath(target) in originals or _is_foreign(target):
            raise InputError(f"{target} exists and is not an enhanced scan. Choose another --out.")
        sidecar = provenance_path(target)
        if sidecar.exists() and read_provenance(sidecar) is None:
            raise InputError(f"{sidecar} exists and was not written by upfield enhance. Choose another --out.")


def _with_own_outputs(tasks: Sequence[EnhanceTask], plan: EnhancePlan) -> list[EnhanceTask]:
    """Return the tasks whose output is theirs alone, and note the others in the plan.

    Raises:
        InputError: no task is left.
    """
    owners: dict[Path, list[Path]] = {}
    for task in tasks:
        owners.setdefault(provenance_path(task.target), []).append(task.scan)
    clashes: list[InputError] = []
    for task in tasks:
        others = [scan for scan in owners[provenance_path(task.target)] if scan != task.scan]
        if others:
            both = f"would be written twice, for this scan and for {others[0]}"
            clashes.append(InputError(f"{task.scan}: {task.target} {both}. Rename one of them."))
    if clashes and len(clashes) == len(tasks):
        raise clashes[0]
    plan.problems.extend(clashes)
    return [task for task in tasks if len(owners[provenance_path(task.target)]) == 1]


def _is_foreign(target: Path) -> bool:
    """Return whether `target` exists but has no provenance from `upfield enhance`, and so may be an original scan."""
    return target.exists() and read_provenance(provenance_path(target)) is None
