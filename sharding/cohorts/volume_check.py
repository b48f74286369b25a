"""Check the headers of one volume, without comparing it with other volumes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import VolumeError
from upfield.imaging.affine import angles_deg, spacing_of
from upfield.imaging.compressed_files import DAMAGED, Trace, is_whole
from upfield.imaging.extent import Extent
from upfield.imaging.formats.file_header import Header, HeaderFinding
from upfield.imaging.formats.header_findings import affine_findings, header_findings, size_text
from upfield.imaging.header import (
    expect_three_dimensions,
    files_of,
    read_header_and_trace,
    unreadable,
)
from upfield.imaging.volume_header import (
    UNPLACED_MM,
    VolumeHeader,
    carry_places,
    name_one_space,
    slice_axis,
    stack_affine,
    unlike_the_first,
)
from upfield.sharding.cohorts.problems import DOUBTS, Field
from upfield.sharding.cohorts.subjects import Source, SourceVolume, Subject

# Rounding in headers changes axes and voxel sizes by less than this between slices.
MAX_TURN_DEG, MAX_CHANGE = 1.0, 0.01


@dataclass(frozen=True)
class Finding:
    """One problem with a volume."""

    check: str
    """The check that failed, as in `Problem`."""
    file: Path
    """The first file that has the problem."""
    message: str
    """The problem and its remedy, without names of files or subjects."""


@dataclass(frozen=True)
class VolumeCheck:
    """The outcome of reading one volume's headers."""

    cohort: str
    """Cohort name."""
    subject: str
    """Name of its subject, as it appears in the file names."""
    field: Field
    """Which of the subject's two volumes it is."""
    source: Source
    """Its files."""
    findings: list[Finding]
    """The problems that were found."""
    traces: tuple[Trace, ...]
    """One trace per file; empty if a file cannot be read, or for formats that keep header and voxels in two files."""
    volume: SourceVolume | None = None
    """The files with their header; None if a check failed."""

    @property
    def extent(self) -> Extent | None:
        """Where the volume lies; None if a check failed."""
        return Extent.of(self.volume.header) if self.volume else None


def check_volume(subject: Subject[Source], field: Field, source: Source) -> VolumeCheck:
    """Read and check the headers of one volume's files, opening each file once.

    Args:
        subject: the subject that the volume belongs to.
        field: which of the subject's two volumes it is.
        source: the volume's files.
    """
    headers: list[Header] = []
    traces: list[Trace | None] = []
    refused: list[Finding] = []
    for path in source.paths:
        try:
            header, trace = _read(path, subject.orientation)
        except VolumeError as error:
            refused.append(Finding("header", path, error.problem))
        else:
            headers.append(header)
            traces.append(trace)
    if refused:
        return VolumeCheck(subject.cohort, subject.name, field, source, [_first_of(refused, source)], ())
    findings = _check_stack(source, headers) if source.stacked else _check_whole(source.paths[0], headers[0])
    in_one_file = tuple(trace for trace in traces if trace is not None)
    known = in_one_file if len(in_one_file) == len(traces) else ()
    failed = any(finding.check not in DOUBTS for finding in findings)
    volume = None if failed else _with_header(source, headers, known)
    return VolumeCheck(subject.cohort, subject.name, field, source, findings, known, volume)


def _with_header(source: Source, headers: list[Header], traces: tuple[Trace, ...]) -> SourceVolume:
    files = source.paths if traces else tuple(file for path in source.paths for file in files_of(path))
    return SourceVolume(
        source.paths, source.stacked, source.metadata, header=VolumeHeader.of(headers), traces=traces, files=files
    )


def _read(path: Path, orientation: str | None) -> tuple[Header, Trace | None]:
    """Read a file's header and trace, and refuse a file that ends before its last voxel."""
    header, trace = read_header_and_trace(path, orientation)
    end_bytes = header.layout.end_bytes
    try:
        if trace is None or end_bytes is None or is_whole(path, trace, end_bytes):
            return header, trace
    except DAMAGED as error:
        raise unreadable(path, error) from error
    raise VolumeError(str(path), f"the file is cut off or damaged: it should have {end_bytes} bytes. Copy it again.")


def _first_of(findings: list[Finding], source: Source) -> Finding:
    """Join the findings of several slices of a stack into one."""
    first, num_slices = findings[0], len(source.paths)
    if not source.stacked:
        return first
    message = f"{len(findings)} of {num_slices} slices are affected; in the first one, {first.message}"
    return Finding(first.check, first.file, message)


def _check_whole(path: Path, header: Header) -> list[Finding]:
    try:
        expect_three_dimensions(header, path)
    except VolumeError as error:
        return [Finding("header", path, error.problem)]
    if min(header.shape) < 2:
        message = (
            f"expected at least 2 voxels along each axis, found shape {header.shape}. "
            "Use a pattern with {slice} for slice files."
        )
        return [Finding("header", path, message)]
    findings = header_findings(header) + affine_findings(header.affine)
    return [Finding(finding.check, path, _message(finding)) for finding in findings]


def _message(finding: HeaderFinding) -> str:
    return f"{finding.note}. {finding.remedy}" if finding.is_doubt else finding.refusal


def _check_stack(source: Source, headers: list[Header]) -> list[Finding]:
    paths = source.paths
    if len(headers) < 2:
        return [Finding("slices", paths[0], "expected at least 2 slices, found 1. Use a pattern without {slice}.")]
    axes: list[int] = []
    refused: list[Finding] = []
    for path, header in zip(paths, headers, strict=True):
        try:
            axes.append(slice_axis(header, path))
        except VolumeError as error:
            refused.append(Finding("header", path, error.problem))
    if refused:
        return [_first_of(refused, source)]
    if others := _slices_of_another_scan(source, headers, axes):
        return [_first_of(others, source)]
    findings = _uneven_steps(source, headers)
    if not name_one_space(headers):
        message = "the headers of its slices name different spaces; they are taken for one. Check the codes."
        findings.append(Finding("space", paths[0], message))
    affine = stack_affine(headers, axes[0])
    if any(finding.check == "steps" for finding in findings):
        # A step across missing slices is larger than the slice thickness.
        affine[:3, axes[0]] = _usual_step_mm(headers)
    # Slices with stated positions need not state their thickness.
    needed = [axis for axis in range(3) if axis != axes[0] or not carry_places(headers)]
    # Side and unit are checked for each slice, because only some slices may be wrong. The stack has only one affine.
    by_check: dict[str, list[Finding]] = {}
    for path, header in zip(paths, headers, strict=True):
        for finding in header_findings(header, needed):
            found = Finding(finding.check, path, _message(finding))
            by_check.setdefault(finding.check, []).append(found)
    findings += [_first_of(some, source) for some in by_check.values()]
    return findings + [Finding(found.check, paths[0], _message(found)) for found in affine_findings(affine)]


def _slices_of_another_scan(source: Source, headers: list[Header], axes: list[int]) -> list[Finding]:
    """Find slices whose shape, axes or voxel sizes differ from those of the first slice."""
    columns = headers[0].affine[:3, :3]
    differences = dict(unlike_the_first(headers, axes))
    for number, header in enumerate(headers):
        if number not in differences and (message := _difference(header, columns)):
            differences[number] = message
    return [
        Finding("slices", source.paths[number], f"{message}. Leave out slices of another scan.")
        for number, message in sorted(differences.items())
    ]


def _difference(header: Header, columns: NDArray[np.float64]) -> str | None:
    if np.array_equal(header.affine[:3, :3], columns):
        return None
    turn_deg = angles_deg(columns, header.affine[:3, :3])
    if (turn_deg > MAX_TURN_DEG).any():
        return f"one of its axes is rotated by {turn_deg.max():.1f} degrees from that of the first slice"
    spacing_mm = spacing_of(columns)
    if (np.abs(header.spacing_mm - spacing_mm) > MAX_CHANGE * spacing_mm).any():
        return f"expected voxels of {size_text(spacing_mm)} as in the first slice, found {size_text(header.spacing_mm)}"
    return None


def _uneven_steps(source: Source, headers: list[Header]) -> list[Finding]:
    """Find the first uneven step between slices, in a stack whose headers state the positions of the slices."""
    origins_mm = np.array([header.affine[:3, 3] for header in headers])
    travelled_mm = np.linalg.norm(origins_mm - origins_mm[0], axis=1)
    if not np.isfinite(travelled_mm).all() or travelled_mm.max() <= UNPLACED_MM:
        return []
    steps_mm = np.diff(origins_mm, axis=0)
    usual_mm = _usual_step_mm(headers)
    off_mm = np.linalg.norm(steps_mm - usual_mm, axis=1)
    # Headers round positions to 0.01 mm at worst.
    wrong = off_mm > max(0.02, 0.05 * float(np.linalg.norm(usual_mm)))
    if not wrong.any():
        return []
    first = int(np.argmax(wrong))
    message = (
        f"the slices are not evenly spaced: the usual step is {np.linalg.norm(usual_mm):.2f} mm, but "
        f"{int(wrong.sum())} of {len(steps_mm)} steps differ, the first by {off_mm[first]:.2f} mm between slices "
        f"{first} and {first + 1} (counted from 0). Check the order of the slices, and whether one is missing."
    )
    return [Finding("steps", source.paths[first + 1], message)]


def _usual_step_mm(headers: list[Header]) -> NDArray[np.float64]:
    return np.median(np.diff([header.affine[:3, 3] for header in headers], axis=0), axis=0)
