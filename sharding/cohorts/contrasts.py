"""Compare the contrast that each cohort states with what its files say, or learn it from them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from upfield.imaging.contrast import Evidence, description_evidence, name_evidence, read_sidecar, sidecar_evidence
from upfield.sharding.cohorts.path_patterns import FIELD
from upfield.sharding.cohorts.problems import Field, Problem
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import CohortConfig


@dataclass(frozen=True)
class CohortContrasts:
    """The contrasts of some cohorts."""

    contrasts: dict[str, str | None]
    """Contrast of each cohort: as it states, or as all its files say; None if it is not known."""
    problems: list[Problem]
    """Scans that seem to show another contrast."""


@dataclass(frozen=True)
class _Claim:
    subject: Subject[SourceVolume]
    field: Field
    source: SourceVolume
    evidence: list[Evidence]

    @property
    def deciding(self) -> Evidence | None:
        return next((one for one in self.evidence if one.kind == "words"), None)

    def problem(self, check: str, message: str) -> Problem:
        return Problem(self.subject.cohort, self.subject.name, self.field, check, str(self.source), message)


def find_contrasts(cohorts: Iterable[CohortConfig], subjects: Sequence[Subject[SourceVolume]]) -> CohortContrasts:
    """Find the contrast of each cohort, and the scans that do not seem to show it.

    Args:
        cohorts: the configurations of the cohorts.
        subjects: their subjects.
    """
    found = CohortContrasts({}, [])
    by_cohort: dict[str, list[Subject[SourceVolume]]] = defaultdict(list)
    for subject in subjects:
        by_cohort[subject.cohort].append(subject)
    for cohort in cohorts:
        claims = [
            _Claim(subject, field, source, _evidence(cohort, field, source))
            for subject in by_cohort[cohort.name]
            for field, source in subject.volumes
        ]
        if cohort.contrast is not None:
            found.contrasts[cohort.name] = cohort.contrast
            found.problems.extend(_contradictions(cohort.contrast, claims))
        else:
            found.contrasts[cohort.name] = _common_contrast(claims)
            found.problems.extend(_differences(claims))
    return found


def _evidence(cohort: CohortConfig, field: Field, source: SourceVolume) -> list[Evidence]:
    """Collect what name, path pattern, JSON file and header say about a volume, the best source first."""
    named = name_evidence(source.paths[0].name) or _pattern_evidence(getattr(cohort, field))
    found = [named, *sidecar_evidence(read_sidecar(source.paths[0])), description_evidence(source.header.descrip)]
    return [one for one in found if one is not None]


def _pattern_evidence(pattern: str) -> Evidence | None:
    """Return what the folders of a path pattern say, the innermost first."""
    folders = (FIELD.sub("", folder) for folder in reversed(PurePosixPath(pattern).parts[:-1]))
    return next((found for folder in folders if (found := name_evidence(folder, "its path pattern"))), None)


def _contradictions(stated: str, claims: list[_Claim]) -> Iterator[Problem]:
    """Find scans that do not show the contrast that their cohort states."""
    for claim in claims:
        wrong = [one for one in claim.evidence if not one.allows([stated])]
        if not wrong:
            continue
        conflict = f"{wrong[0].source}, but the cohort states contrast: {stated}"
        if wrong[0] == claim.deciding or (claim.deciding is None and wrong[0].kind == "times"):
            yield claim.problem("contrast", f"{conflict}. Leave the scan out, or correct `contrast` of the cohort.")
        else:
            yield claim.problem("times", f"{conflict}. Check the scan.")


def _common_contrast(claims: list[_Claim]) -> str | None:
    """Return the contrast that the files of every subject say; None if some say nothing or another one."""
    said: Mapping[str, set[str | None]] = defaultdict(set)
    for claim in claims:
        said[claim.subject.name] |= set(claim.deciding.contrasts if claim.deciding else ())
    contrasts = set().union(*said.values())
    return contrasts.pop() if len(contrasts) == 1 and all(said.values()) else None


def _differences(claims: list[_Claim]) -> Iterator[Problem]:
    """Find scans that differ in contrast from their subject's other field, or from most scans of their cohort."""
    of_high: dict[str, str] = {}
    counts: dict[Field, Counter[str]] = {"low": Counter(), "high": Counter()}
    for claim in claims:
        if claim.deciding:
            (contrast,) = claim.deciding.contrasts
            counts[claim.field][contrast] += 1
            if claim.field == "high":
                of_high[claim.subject.name] = contrast
    remedy = "Leave the scan out, or state `contrast` of the cohort"
    for claim in claims:
        if claim.deciding is None:
            continue
        (contrast,) = claim.deciding.contrasts
        high = of_high.get(claim.subject.name, contrast)
        usual = max(sorted(counts[claim.field]), key=counts[claim.field].__getitem__)
        if contrast != high:
            yield claim.problem("times", f"{claim.deciding.source}, but the high field shows {high}. {remedy}.")
        elif contrast != usual:
            yield claim.problem("times", f"{claim.deciding.source}, but most of this cohort is {usual}. {remedy}.")
