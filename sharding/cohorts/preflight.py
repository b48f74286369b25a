"""Check every header of a cohort before any voxel is read, and collect all problems in one report."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

import numpy as np

from upfield.common.errors import InputError, RunError
from upfield.common.progress import say
from upfield.common.tasks import run_tasks
from upfield.imaging.compressed_files import Trace
from upfield.imaging.extent import Extent, place_doubt, size_problem, space_problem, tilt_problem
from upfield.imaging.placement import SharedSpace, share_space
from upfield.imaging.plausibility.resolution import (
    coarse_doubt,
    fine_doubt,
    finer_low_doubt,
    sample_distance,
    sampling_doubt,
)
from upfield.imaging.volume_header import VolumeHeader
from upfield.sharding.cohorts.duplicates import find_same_content
from upfield.sharding.cohorts.problems import FIELD_NAMES, TWIN, Field, Problem, noun_of
from upfield.sharding.cohorts.subjects import Source, SourceVolume, Subject, processes_for
from upfield.sharding.cohorts.volume_check import Finding, VolumeCheck, check_volume
from upfield.sharding.configuration import GeometryConfig, SpacingMm, Triple

SUBJECTS_PER_TASK = 4
# Fractions of the median stack length of a cohort. A stack that is shorter than the first is a problem. A stack whose
# length differs from the median by more than the second is only reported.
MIN_STACK_LENGTH, REPORTED_DIFFERENCE = 0.75, 0.02
# Stacks of different scans may share the black slices at their ends.
MAX_SHARED_SLICES = 0.5
DEFAULT_GEOMETRY = GeometryConfig()

Place = tuple[str, str, Field]


@dataclass(frozen=True)
class Preflight:
    """The outcome of reading the headers of all cohorts."""

    problems: list[Problem]
    """All problems that were found, sorted."""
    subjects: list[Subject[SourceVolume]]
    """Subjects whose volumes all passed their own checks, in the order given. They may still have problems that
    were found by comparing volumes."""


def preflight(
    subjects: Sequence[Subject[Source]], jobs: int = 0, geometry: GeometryConfig = DEFAULT_GEOMETRY
) -> Preflight:
    """Read every header once, and find all problems that headers show.

    Each file is opened once, with two exceptions: files of equal length and CRC are compared byte by byte, and a gzip
    file is read to its end if its trailer does not match the length that its header requires.

    Args:
        subjects: the subjects of all cohorts, because two subjects of different cohorts may share a file.
        jobs: number of processes; 0 means one per core. If there are few files, only one process is used.
        geometry: the grids of the set.

    Returns:
        The problems, and the subjects with their headers.
    """
    tasks = [subjects[first : first + SUBJECTS_PER_TASK] for first in range(0, len(subjects), SUBJECTS_PER_TASK)]
    results = run_tasks(check_subjects, tasks, processes_for(subjects, jobs))
    # Tasks finish in any order. The problems are sorted, so that the report does not depend on this order.
    checked = sorted((volume for some in results for volume in some), key=_place)
    problems = [
        replace(_problem(volume, finding.check, str(finding.file), finding.message), details=finding.details)
        for volume in checked
        for finding in volume.findings
    ]
    problems += _short_stacks(checked)
    for find in (_mismatched_fields, _doubtful_sizes, _doubtful_resolutions):
        problems += _one_by_one(find, checked, subjects, geometry)
    problems += _copies(checked)
    problems += _partial_copies(checked, {(p.cohort, p.subject) for p in problems if p.check == "same"})
    volumes = {_place(check): check.volume for check in checked if check.volume}
    return Preflight(sorted(problems), [whole for subject in subjects if (whole := _with_headers(subject, volumes))])


def _with_headers(subject: Subject[Source], volumes: Mapping[Place, SourceVolume]) -> Subject[SourceVolume] | None:
    """Return the subject with its headers; None if the header of a volume is missing."""
    checked = {field: volumes.get((subject.cohort, subject.name, field)) for field, _ in subject.volumes}
    if None in checked.values():
        return None
    high, low, space = checked.get("high"), checked.get("low"), None
    if low is not None and high is not None and not _ignores_positions(subject):
        shared = _shared_space(low.header, high.header)
        low_header, high_header = _in_space((low.header, high.header), shared)
        low, high = replace(low, header=low_header), replace(high, header=high_header)
        space = shared.name
    return Subject(
        subject.cohort,
        subject.id,
        subject.name,
        subject.split,
        high,
        low,
        subject.fit,
        subject.units,
        subject.align,
        subject.orientation,
        space,
        checked.get("labels"),
        subject.labels_as,
    )


def _ignores_positions(subject: Subject) -> bool:
    return subject.fit == "resize" and subject.align == "none"


def _in_space(fields: tuple[VolumeHeader, VolumeHeader], shared: SharedSpace) -> tuple[VolumeHeader, VolumeHeader]:
    low, high = fields
    return replace(low, affine=shared.affines[0]), replace(high, affine=shared.affines[1])


def _shared_space(low: VolumeHeader, high: VolumeHeader) -> SharedSpace:
    return share_space(low, high, ("the low field", "the high field"))


def check_subjects(subjects: Sequence[Subject]) -> list[VolumeCheck]:
    """Read the headers of some subjects' volumes and check each volume by itself; runs in a worker."""
    return [_check(subject, field, source) for subject in subjects for field, source in subject.volumes]


def _check(subject: Subject[Source], field: Field, source: Source) -> VolumeCheck:
    try:
        return check_volume(subject, field, source)
    except (InputError, RunError, OSError, MemoryError):
        raise
    except Exception as error:
        fault = Problem.of_fault(subject.cohort, subject.name, field, str(source), error)
        finding = Finding(fault.check, source.paths[0], fault.message, fault.details)
        return VolumeCheck(subject.cohort, subject.name, field, source, [finding], ())


def _one_by_one(
    find: Callable[[list[VolumeCheck], Sequence[Subject], GeometryConfig], Iterator[Problem]],
    checked: list[VolumeCheck],
    subjects: Sequence[Subject],
    geometry: GeometryConfig,
) -> list[Problem]:
    """Return the problems that `find` finds, and a problem for each subject on which it fails."""
    try:
        return list(find(checked, subjects, geometry))
    except Exception as error:
        if len(subjects) == 1:
            (subject,) = subjects
            field, source = subject.main
            return [Problem.of_fault(subject.cohort, subject.name, field, str(source), error)]
        return [problem for subject in subjects for problem in _one_by_one(find, checked, [subject], geometry)]


def _place(volume: VolumeCheck) -> Place:
    return volume.cohort, volume.subject, volume.field


def _problem(volume: VolumeCheck, check: str, file: str, message: str) -> Problem:
    return Problem(volume.cohort, volume.subject, volume.field, check, file, message)


def _short_stacks(checked: list[VolumeCheck]) -> Iterator[Problem]:
    """Find stacks that are much shorter than most stacks of their cohort, so that a part of the head is missing.

    Smaller differences may come from the scan itself and are only reported on stderr.
    """
    lengths_mm: dict[tuple[str, Field], list[tuple[VolumeCheck, float]]] = defaultdict(list)
    for volume in checked:
        if volume.extent is not None and (axis := volume.extent.stacked_along) is not None:
            lengths_mm[volume.cohort, volume.field].append((volume, float(volume.extent.size_mm[axis])))
    for (cohort, field), volumes in lengths_mm.items():
        usual_mm = median(length_mm for _, length_mm in volumes)
        for volume, length_mm in volumes:
            lengths = f"most stacks of this cohort cover {usual_mm:.0f} mm, but this one covers {length_mm:.0f} mm"
            if length_mm < MIN_STACK_LENGTH * usual_mm:
                message = f"{lengths}. Complete the stack, or leave the subject out."
                yield _problem(volume, "place", str(volume.source), message)
            elif abs(length_mm - usual_mm) > REPORTED_DIFFERENCE * usual_mm:
                say(f"cohort {cohort}: {field}: {volume.subject}: {lengths}. Check that it is complete.")


def _mismatched_fields(
    checked: list[VolumeCheck], subjects: Sequence[Subject], geometry: GeometryConfig
) -> Iterator[Problem]:
    """Find pairs whose two fields do not seem to belong together."""
    grid_mm = np.array(geometry.high_size_mm)
    checked_at = {_place(volume): volume for volume in checked}
    for subject in subjects:
        if subject.low is None:
            continue
        low, high = (checked_at[subject.cohort, subject.name, field] for field in ("low", "high"))
        if low.volume is None or high.volume is None:
            continue
        fields = low.volume.header, high.volume.header
        messages: dict[str, str | None] = {}
        if not _ignores_positions(subject):
            shared = _shared_space(*fields)
            fields = _in_space(fields, shared)
            if problem := space_problem(shared, subject.align, Extent.of(fields[0]), Extent.of(fields[1])):
                messages[problem[0]] = problem[1]
        extents = Extent.of(fields[0]), Extent.of(fields[1])
        doubt = finer_low_doubt(*extents)
        messages["resolution"] = doubt and f"{doubt}."
        if subject.align == "none" and "affine" not in messages:
            messages["place"] = place_doubt(*extents, subject.fit, grid_mm)
            if subject.fit == "crop_pad":
                messages["affine"] = tilt_problem(*extents)
        for check, message in messages.items():
            if message:
                yield _problem(low, check, str(low.source), message)


def _doubtful_sizes(
    checked: list[VolumeCheck], subjects: Sequence[Subject], geometry: GeometryConfig
) -> Iterator[Problem]:
    """Find fields of view that cannot show a head. With `fit: resize`, their lengths in mm do not matter."""
    checked_at = {_place(volume): volume for volume in checked}
    for subject in subjects:
        for field, _ in subject.volumes:
            volume = checked_at[subject.cohort, subject.name, field]
            extent = volume.extent
            if subject.fit == "crop_pad" and extent and (message := size_problem(extent.size_mm)):
                yield _problem(volume, "values", str(volume.source), f"{message}. Check the spacing in the header.")


def _doubtful_resolutions(
    checked: list[VolumeCheck], subjects: Sequence[Subject], geometry: GeometryConfig
) -> Iterator[Problem]:
    """Find volumes much finer than their grid, high fields much coarser than it, and low fields at high resolution.

    The head that is rendered from a label map is as fine as its grid, however coarse the map is.
    """
    grids: dict[Field, tuple[Triple, SpacingMm]] = {
        "low": (geometry.low_shape, geometry.low_spacing_mm),
        "high": (geometry.high_shape, geometry.high_spacing_mm),
    }
    checked_at = {_place(volume): volume for volume in checked}
    for subject in subjects:
        for field, _ in subject.volumes:
            volume = checked_at[subject.cohort, subject.name, field]
            if field not in grids or (extent := volume.extent) is None:
                continue
            spacing_mm, grid_mm = extent.spacing_mm, sample_distance(extent, subject.fit, *grids[field])
            found = None if geometry.average else sampling_doubt(f"the {field} field", spacing_mm, grid_mm)
            doubts = (
                found and f"{found}; choose a finer grid, or set geometry.average: true",
                fine_doubt(spacing_mm) if field == "low" else coarse_doubt(spacing_mm, grid_mm),
            )
            for doubt in filter(None, doubts):
                yield _problem(volume, "resolution", str(volume.source), f"{doubt}.")


def _copies(checked: list[VolumeCheck]) -> Iterator[Problem]:
    """Find volumes with the same content as a volume of another subject, or as the subject's own other field."""
    traced = [volume for volume in checked if volume.traces]
    for group in find_same_content([volume.source.paths for volume in traced], [volume.traces for volume in traced]):
        volumes = [traced[index] for index in group]
        for volume in volumes:
            others = [other for other in volumes if other is not volume]
            # A copy of another subject is more serious than a copy of the subject's own other field.
            other = min(others, key=lambda other: _place(other)[:2] == _place(volume)[:2])
            owner = "the same subject" if _place(other)[:2] == _place(volume)[:2] else "another subject"
            message = (
                f"this {noun_of(volume.field)} has the same content as the {FIELD_NAMES[other.field]} of {owner}. "
                "Leave one of them out."
            )
            file = f"{volume.source.paths[0]}{TWIN}{other.source.paths[0]} ({other.cohort} {other.subject})"
            yield _problem(volume, "same", file, message)


def _partial_copies(checked: list[VolumeCheck], copies: set[tuple[str, str]]) -> Iterator[Problem]:
    """Find copies that lack some slices: stacks that share most of their slices with a stack of another subject.

    Args:
        checked: all volumes.
        copies: (cohort, name) of subjects that are known to be complete copies; they are not checked again.
    """
    stacks = [v for v in checked if v.source.stacked and v.traces and (v.cohort, v.subject) not in copies]
    holders: dict[Trace, list[int]] = defaultdict(list)
    for number, volume in enumerate(stacks):
        for traced in set(volume.traces):
            if traced.crc is not None:
                holders[traced].append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for numbers in holders.values():
        shared.update(combinations(numbers, 2))
    for (first, second), count in sorted(shared.items()):
        stack, other = stacks[first], stacks[second]
        if count <= MAX_SHARED_SLICES * min(len(stack.traces), len(other.traces)):
            continue
        if _place(stack)[:2] == _place(other)[:2]:
            continue
        for volume, twin in ((stack, other), (other, stack)):
            message = (
                f"{count} of the {len(volume.traces)} slices of this stack also belong to the {twin.field} field of "
                "another subject. Leave one of the two out."
            )
            file = f"{volume.source.paths[0]}{TWIN}{twin.source.paths[0]} ({twin.cohort} {twin.subject})"
            yield _problem(volume, "same", file, message)
