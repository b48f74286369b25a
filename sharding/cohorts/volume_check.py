"""Check the headers of one volume, without comparing it with other volumes."""

from dataclasses import dataclass
from pathlib import Path

from upfield.common.errors import VolumeError
from upfield.imaging.compressed_files import DAMAGED, Trace, is_whole
from upfield.imaging.extent import Extent
from upfield.imaging.formats.file_header import Header, HeaderFinding
from upfield.imaging.formats.header_findings import affine_findings, header_findings
from upfield.imaging.header import (
    cut_off,
    expect_three_dimensions,
    files_of,
    read_header_and_trace,
    unreadable,
)
from upfield.imaging.volume_header import (
    VolumeHeader,
    carry_places,
    name_one_space,
    slice_axis,
    stack_affine,
)
from upfield.sharding.cohorts.problems import DOUBTS, Field
from upfield.sharding.cohorts.stack_check import uneven_steps, unlike_the_rest, unusual_statements, usual_step_mm
from upfield.sharding.cohorts.subjects import Source, SourceVolume, Subject


@dataclass(frozen=True)
class Finding:
    """One problem with a volume."""

    check: str
    """The check that failed, as in `Problem`."""
    file: Path
    """The first file that has the problem."""
    message: str
    """The problem and its remedy, without names of files or subjects."""
    details: str = ""
    """The traceback of a fault of the program; empty for other problems."""


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
    raise cut_off(path, end_bytes)


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
    if others := unlike_the_rest(headers, axes):
        remedy = "Leave out slices of another scan."
        return [_first_of([Finding("slices", paths[number], f"{text}. {remedy}") for number, text in others], source)]
    uneven = uneven_steps(headers)
    findings = [Finding("steps", paths[uneven[0]], uneven[1])] if uneven else []
    if not name_one_space(headers):
        message = "the headers of its slices name different spaces, which are treated as one. Check their form codes."
        findings.append(Finding("space", paths[0], message))
    affine = stack_affine(headers, axes[0])
    if any(finding.check == "steps" for finding in findings):
        # A step across missing slices is larger than the slice thickness.
        affine[:3, axes[0]] = usual_step_mm(headers)
    # Slices with stated positions need not state their thickness.
    needed = [axis for axis in range(3) if axis != axes[0] or not carry_places(headers)]
    # Side and unit are checked for each slice, because only some slices may be wrong. The stack has only one affine.
    by_check: dict[str, list[Finding]] = {}
    for path, header in zip(paths, headers, strict=True):
        for finding in header_findings(header, needed):
            found = Finding(finding.check, path, _message(finding))
            by_check.setdefault(finding.check, []).append(found)
    findings += [_first_of(some, source) for some in by_check.values()]
    findings += [Finding("slice", paths[number], message) for number, message in unusual_statements(headers)]
    return findings + [Finding(found.check, paths[0], _message(found)) for found in affine_findings(affine)]
