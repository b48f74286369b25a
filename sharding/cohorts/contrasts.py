"""Compare the contrast that each cohort states with what its files say, or learn it from them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from upfield.imaging.contrast import Evidence, gather_evidence, name_evidence, read_sidecar
from upfield.sharding.cohorts.path_patterns import FIELD
from upfield.sharding.cohorts.problems import Field, Problem
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import RENDERED_CONTRAST, CohortConfig


@dataclass(frozen=True)
class CohortContrasts:
    """The contrasts of some cohorts."""

    contrasts: dict[str, str | None]
    """Contrast of each cohort: as it states, or as all its files say; None if it is not known."""
    problems: list[Problem]
    """Scans that seem to show another contrast."""


@dataclass(frozen=True)
class _VolumeEvidence:
    subject: Subject[SourceVolume]
    field: Field
    source: SourceVolume
    evidence: list[Evidence]

    @property
    def deciding(self) -> Evidence | None:
        return next((sign for sign in self.evidence if sign.kind == "words"), None)

    def problem(self, check: str, message: str) -> Problem:
        return Problem(self.subject.cohort, self.subject.name, self.field, check, str(self.source), message)


def find_contrasts(cohorts: Iterable[CohortConfig], subjects: Sequence[Subject[SourceVolume]]) -> CohortContrasts:
    """Find the contrast of each cohort, and the scans that do not seem to show it.

    Args:
        cohorts: the configurations of the cohorts.
        subjects: their subjects.
    """
    contrasts: dict[str, str | None] = {}
    problems: list[Problem] = []
    by_cohort: dict[str, list[Subject[SourceVolume]]] = defaultdict(list)
    for subject in subjects:
        by_cohort[subject.cohort].append(subject)
    for cohort in cohorts:
        if cohort.labels is not None:
            # A label map shows no contrast, whatever its name says.
            contrasts[cohort.name] = cohort.contrast or RENDERED_CONTRAST
            continue
        volumes = [
            _VolumeEvidence(subject, field, source, _evidence(cohort, field, source))
            for subject in by_cohort[cohort.name]
            for field, source in subject.volumes
        ]
        if cohort.contrast is not None:
            contrasts[cohort.name] = cohort.contrast
            problems.extend(_contradictions(cohort.contrast, volumes))
        else:
            contrasts[cohort.name] = _common_contrast(volumes)
            problems.extend(_differences(volumes))
    return CohortContrasts(contrasts, problems)


def _evidence(cohort: CohortConfig, field: Field, source: SourceVolume) -> list[Evidence]:
    """Collect what name, path pattern, JSON file and header say about a volume, the best source first."""
    named = name_evidence(source.paths[0].name) or _pattern_evidence(getattr(cohort, field))
    return gather_evidence(named, read_sidecar(source.paths[0]), source.header.descrip)


def _pattern_evidence(pattern: str) -> Evidence | None:
    """Return what the folders of a path pattern say, the innermost first."""
    folders = (FIELD.sub("", folder) for folder in reversed(PurePosixPath(pattern).parts[:-1]))
    return next((found for folder in folders if (found := name_evidence(folder, "its path pattern"))), None)


def _contradictions(stated: str, volumes: list[_VolumeEvidence]) -> Iterator[Problem]:
    """Find scans that do not show the contrast that their cohort states."""
    for volume in volumes:
        wrong = [sign for sign in volume.evidence if not sign.allows([stated])]
        if not wrong:
            continue
        conflict = f"{wrong[0].source}, but the cohort states contrast: {stated}"
        if wrong[0] == volume.deciding or (volume.deciding is None and wrong[0].kind == "times"):
            yield volume.problem("contrast", f"{conflict}. Leave the scan out, or correct `contrast` of the cohort.")
        else:
            yield volume.problem("times", f"{conflict}. Check the scan.")


def _common_contrast(volumes: list[_VolumeEvidence]) -> str | None:
    """Return the contrast that the files of every subject say; None if some say nothing or another one."""
    said: Mapping[str, set[str | None]] = defaultdict(set)
    for volume in volumes:
        said[volume.subject.name] |= set(volume.deciding.contrasts if volume.deciding else ())
    contrasts = set().union(*said.values())
    return contrasts.pop() if len(contrasts) == 1 and all(said.values()) else None


def _differences(volumes: list[_VolumeEvidence]) -> Iterator[Problem]:
    """Find scans that differ in contrast from their subject's other field, or from most scans of their cohort."""
    of_high: dict[str, str] = {}
    counts: dict[Field, Counter[str]] = {"low": Counter(), "high": Counter()}
    for volume in volumes:
        if volume.deciding:
            (contrast,) = volume.deciding.contrasts
            counts[volume.field][contrast] += 1
            if volume.field == "high":
                of_high[volume.subject.name] = contrast
    remedy = "Leave the scan out, or state `contrast` of the cohort"
    for volume in volumes:
        if volume.deciding is None:
            continue
        (contrast,) = volume.deciding.contrasts
        high = of_high.get(volume.subject.name, contrast)
        usual = max(sorted(counts[volume.field]), key=counts[volume.field].__getitem__)
        if contrast != high:
            yield volume.problem("times", f"{volume.deciding.source}, but the high field shows {high}. {remedy}.")
        elif contrast != usual:
            yield volume.problem("times", f"{volume.deciding.source}, but most of this cohort is {usual}. {remedy}.")
