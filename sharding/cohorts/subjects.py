"""Find the subjects of a cohort and their files by path patterns."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from upfield.common.errors import InputError
from upfield.common.places import is_dicom
from upfield.common.progress import say
from upfield.common.tables import counted
from upfield.imaging.compressed_files import Trace
from upfield.imaging.volume_header import VolumeHeader
from upfield.sharding.cohorts.path_patterns import list_files, to_regex
from upfield.sharding.cohorts.privacy import Pseudonyms
from upfield.sharding.cohorts.problems import TWIN, Field, Problem
from upfield.sharding.cohorts.splits import assign_splits, list_some
from upfield.sharding.configuration import CohortConfig
from upfield.sharding.shardset.sample_key import Split, Unit, key_part

# Value of each free field of the patterns; both values, by field strength, if those of low and high field differ.
Metadata = dict[str, "str | dict[str, str]"]

# Keys must be short enough for a plain tar header.
MAX_ID_LENGTH = 40
# With fewer files, starting processes takes longer than inspecting the files.
FILES_FOR_PROCESSES = 5000


@dataclass(frozen=True)
class Source:
    """The files of one volume."""

    paths: tuple[Path, ...]
    """One volume file, or slice files in slice order."""
    stacked: bool
    """Whether the files are slices."""
    metadata: Metadata = field(default_factory=dict)
    """Values of the free fields of its pattern; for a high field, those of the low field too."""

    def __str__(self) -> str:
        """Return the path for messages; for a stack, the first path and the name of the last file."""
        return str(self.paths[0]) if not self.stacked else f"{self.paths[0]} .. {self.paths[-1].name}"


@dataclass(frozen=True)
class SourceVolume(Source):
    """The files of one volume together with their header, which is read once, by the preflight."""

    header: VolumeHeader = field(kw_only=True)
    """The header of the whole volume, combined from its files."""
    traces: tuple[Trace, ...] = field(kw_only=True)
    """One trace per file; empty for formats that keep header and voxels in two files."""
    files: tuple[Path, ...] = field(kw_only=True)
    """All files of the volume: `paths`, and for formats of two files also the second file of each."""


S_co = TypeVar("S_co", bound=Source, covariant=True)


@dataclass(frozen=True)
class Subject(Generic[S_co]):
    """One subject of a cohort. Its volumes are `SourceVolume`s once their headers have been read."""

    cohort: str
    """Cohort name."""
    id: str
    """Its id in the shards: its name or a pseudonym."""
    name: str
    """Its name, as it appears in the file names."""
    split: Split
    """The split that all its samples belong to."""
    high: S_co | None
    """High-field files; None if both fields are rendered from a label map."""
    low: S_co | None
    """Low-field files; None if all pairs are synthetic."""
    fit: Literal["resize", "crop_pad"]
    """How its volumes are resampled to the grids."""
    units: tuple[Unit, ...]
    """The pairs that are made from it."""
    align: Literal["none", "rigid"] = "none"
    """Whether its high field is registered to its low field."""
    orientation: str | None = None
    """Axis codes, for example `RAS`, for files that do not state their orientation."""
    space: str | None = None
    """Name of the space in which its two volumes are brought together; None if positions do not matter."""
    labels: S_co | None = None
    """Label map that both fields are rendered from; None if there is a high-field scan."""
    labels_as: Mapping[int, int | str] = field(default_factory=dict)
    """Meaning of numbers in the label map that are not known, as in `CohortConfig.labels_as`."""
    contrast: str | None = None
    """Contrast of its scans, or of the heads rendered from its label map; None as long as it is not known."""

    @property
    def volumes(self) -> Iterator[tuple[Field, S_co]]:
        """Each volume of the subject, with its field."""
        if self.high is not None:
            yield "high", self.high
        if self.low is not None:
            yield "low", self.low
        if self.labels is not None:
            yield "labels", self.labels

    @property
    def main(self) -> tuple[Field, S_co]:
        """The volume that every subject has, with its field: the high-field scan or the label map."""
        return next(self.volumes)

    @property
    def main_source(self) -> S_co:
        """The files of the high-field scan or the label map."""
        return self.main[1]

    @property
    def key_part(self) -> str:
        """Its id, limited to the characters that sample keys and file names may contain."""
        return key_part(self.id)


@dataclass(frozen=True)
class CohortFiles:
    """The subjects of one or more cohorts, found from the file names alone."""

    subjects: list[Subject[Source]]
    """Subjects with all their volumes, sorted by id within a cohort; some of them may have problems."""
    problems: list[Problem]
    """Problems that the file names show."""
    ids: dict[tuple[str, str], str]
    """(cohort, name) of every subject in the file names, even if one of its fields is missing -> its id in shards."""


def find_cohorts(cohorts: Iterable[CohortConfig], root: Path, pseudonyms: Pseudonyms | None = None) -> CohortFiles:
    """Find the subjects of several cohorts, each with `find_subjects`."""
    parts = [find_subjects(cohort, root, pseudonyms) for cohort in cohorts]
    return CohortFiles(
        [subject for part in parts for subject in part.subjects],
        [problem for part in parts for problem in part.problems],
        {key: identifier for part in parts for key, identifier in part.ids.items()},
    )


def find_subjects(cohort: CohortConfig, root: Path, pseudonyms: Pseudonyms | None = None) -> CohortFiles:
    """Find a cohort's subjects, pair their files and assign their splits.

    Args:
        cohort: patterns, split and kinds.
        root: folder that relative patterns start from.
        pseudonyms: replace the names in shards; if there are pseudonyms, values of free fields are left out.

    Raises:
        InputError: a pattern matches no file, or the split names unknown subjects or asks for too many.
    """
    main_field: Field = "high" if cohort.labels is None else "labels"
    pattern = cohort.high if cohort.labels is None else cohort.labels
    assert pattern is not None, "CohortConfig requires one of the two patterns"
    high, problems = match(pattern, root, cohort.name, main_field)
    low: dict[str, Source] = {}
    if cohort.low is not None:
        low, more = match(cohort.low, root, cohort.name, "low")
        problems += more + _unpaired(cohort, low, high)
        problems += _differing_fields(cohort, low, high, {problem.subject for problem in problems})
    names = sorted(low.keys() | high.keys())
    ids = {name: pseudonyms.of(cohort.name, name) if pseudonyms else name for name in names}
    problems += _unusable_names(cohort, ids, high, main_field)
    # Subjects with problems are included, so that fixing one or leaving it out does not change the splits of others.
    splits = assign_splits(cohort, ids)
    for name, source in high.items():
        fields = _combined(low[name].metadata, source.metadata) if name in low else source.metadata
        high[name] = replace(source, metadata={} if pseudonyms else fields)
    # Subjects are sorted by id, so that the order of samples reveals nothing about the names behind pseudonyms.
    paired = [name for name in sorted(high, key=ids.__getitem__) if cohort.low is None or name in low]
    subjects = [_subject(cohort, name, ids[name], splits[name], high[name], low.get(name)) for name in paired]
    return CohortFiles(subjects, problems, {(cohort.name, name): identifier for name, identifier in ids.items()})


def _subject(
    cohort: CohortConfig, name: str, identifier: str, split: Split, main: Source, low: Source | None
) -> Subject:
    units: list[Unit] = [Unit(cohort.name, identifier, "real", 0)] if low else []
    # If the cohort has real pairs, validation and test use only those.
    if split == "train" or not low:
        units += [Unit(cohort.name, identifier, "synthetic", variant) for variant in range(cohort.synthetic)]
    is_map = cohort.labels is not None
    return Subject(
        cohort.name,
        identifier,
        name,
        split,
        high=None if is_map else main,
        low=low,
        fit=cohort.fit or ("resize" if main.stacked else "crop_pad"),
        units=tuple(units),
        align=cohort.align,
        orientation=cohort.orientation,
        labels=main if is_map else None,
        labels_as=cohort.labels_as,
    )


def match(pattern: str, root: Path, cohort: str, field: Field) -> tuple[dict[str, Source], list[Problem]]:
    """Find the files of a pattern and group them by `{subject}`.

    Args:
        pattern: path with `{subject}`, perhaps `{slice}`, free `{fields}`, and the wildcards `*`, `?` and `**`.
        root: folder that a relative pattern starts from.
        cohort: name of the cohort.
        field: low, high or labels.

    Returns:
        The source of each subject, with slices in the order of their numbers, and the problems that file names show:
        two files for one slice, missing slices, and slices of several scans in one stack.

    Raises:
        InputError: no file matches.
    """
    anchored = (root / pattern).as_posix()
    expression = re.compile(to_regex(anchored))
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    metadata: dict[str, list[dict[str, str]]] = defaultdict(list)
    doubled: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    others: list[str] = []
    for name in list_files(anchored):
        if not (parts := expression.fullmatch(name)):
            others.append(name)
            continue
        fields = parts.groupdict()
        subject, number = fields.pop("subject"), int(fields.pop("slice", 0))
        if number in numbered[subject]:
            doubled[subject].append((numbered[subject][number], name))
            continue
        numbered[subject][number] = Path(name)
        metadata[subject].append(fields)
    if not numbered:
        raise InputError(f"cohort {cohort}: {field}: no file matches {anchored}. {_remedy(Path(anchored))}")
    if others:
        say(
            f"cohort {cohort}: {field}: ignored {counted(len(others), 'file')} without a full match of {pattern} "
            "({slice} must be a number, and a repeated field must have the same value everywhere): "
            f"{others[0]}{' and others' if others[1:] else ''}"
        )
    problems = [
        Problem(cohort, subject, field, "slices", f"{pairs[0][0]} and {pairs[0][1]}", _doubled(pattern, pairs))
        for subject, pairs in doubled.items()
    ]
    stacked = "{slice}" in pattern
    sources: dict[str, Source] = {}
    for subject, files in numbered.items():
        sources[subject] = Source(tuple(files[number] for number in sorted(files)), stacked, {**metadata[subject][0]})
        for fault in (_gap(sorted(files)), _mixture(metadata[subject])):
            if fault:
                problems.append(Problem(cohort, subject, field, "slices", str(sources[subject]), fault))
    return sources, problems


def _doubled(pattern: str, pairs: list[tuple[Path, str]]) -> str:
    """Return the problem of a subject for which several files match, pair by pair."""
    if is_dicom(pairs[0][0]):
        return (
            f"the {len(pairs) + 1} files of this subject are a DICOM series. Convert it to one NIfTI file, for example "
            "with dcm2niix."
        )
    matched = "subject and slice" if "{slice}" in pattern else "subject"
    more = f", and {len(pairs) - 1} more do" if len(pairs) > 1 else ""
    return f"two files match the same {matched}{more}. Narrow the pattern, or move files away."


def _gap(numbers: list[int]) -> str | None:
    missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if not missing:
        return None
    return (
        f"{len(missing)} of the slices {numbers[0]} to {numbers[-1]} are missing ({list_some(missing)}). "
        "Complete the stack, or leave the subject out."
    )


def _mixture(slices: list[dict[str, str]]) -> str | None:
    """Return a message if the slices of a stack come from several scans, according to the fields of their names."""
    for name in slices[0]:
        values = Counter(fields[name] for fields in slices)
        # A field with another value in every slice counts slices.
        if 1 < len(values) < len(slices):
            (usual, _), *others = values.most_common()
            return (
                f"{sum(count for _, count in others)} of the {len(slices)} slices have another {{{name}}} than the "
                f"rest: {others[0][0]} instead of {usual}. Leave out slices of another scan, or write * for a part "
                "of the name that may differ from slice to slice."
            )
    return None


def _unpaired(cohort: CohortConfig, low: dict[str, Source], high: dict[str, Source]) -> list[Problem]:
    problems: list[Problem] = []
    for name in sorted(low.keys() ^ high.keys()):
        present, absent = ("low", "high") if name in low else ("high", "low")
        message = f"this {present}-field scan has no {absent} field. Add the {absent} field or move the scan away."
        source = low.get(name) or high[name]
        problems.append(Problem(cohort.name, name, absent, "unpaired", str(source), message))
    return problems


def _combined(low: Metadata, high: Metadata) -> Metadata:
    """Combine the fields of a pair; both values of a field are kept if they differ."""
    both: Metadata = {
        name: {"low": str(low[name]), "high": str(high[name])}
        for name in low.keys() & high.keys()
        if low[name] != high[name]
    }
    return low | high | both


def _differing_fields(
    cohort: CohortConfig, low: dict[str, Source], high: dict[str, Source], known: set[str]
) -> Iterator[Problem]:
    """Find pairs whose two files differ in a field that both patterns name; `known` subjects already have problems."""
    for subject in sorted((low.keys() & high.keys()) - known):
        fields = low[subject].metadata, high[subject].metadata
        for name in sorted(fields[0].keys() & fields[1].keys()):
            values = [str(tree[name]) for tree in fields]
            if _plain(values[0]) == _plain(values[1]):
                continue
            message = (
                f"low and high field differ in {{{name}}}: {values[0]} and {values[1]}. Pair files of the same "
                f"{name}, or, if it may differ, write {{{name}_low}} and {{{name}_high}} in the two patterns."
            )
            yield Problem(cohort.name, subject, "low", "fields", f"{low[subject]}{TWIN}{high[subject]}", message)


def _plain(value: str) -> str:
    """Return a field's value without leading zeros and in lower case, because people write numbers in several ways."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", value).casefold()


def _unusable_names(
    cohort: CohortConfig, ids: dict[str, str], sources: dict[str, Source], field: Field
) -> list[Problem]:
    taken: set[str] = set()
    problems: list[Problem] = []
    for name, identifier in ids.items():
        part = key_part(identifier)
        if any("\ud800" <= character <= "\udfff" for character in name):
            message = "the file names are not UTF-8. Rename the files."
            problems.append(Problem(cohort.name, name, field, "name", str(sources.get(name, name)), message))
        if len(part) > MAX_ID_LENGTH or part in taken:
            fault = (
                f"the id has more than {MAX_ID_LENGTH} characters"
                if len(part) > MAX_ID_LENGTH
                else "two ids differ only in characters other than letters, digits, '-' and '_'"
            )
            message = f"{fault}. Rename the files."
            problems.append(Problem(cohort.name, name, field, "name", str(sources.get(name, name)), message))
        taken.add(part)
    return problems


def processes_for(subjects: Iterable[Subject], jobs: int) -> int:
    """Return how many processes inspect the files of `subjects`: 1 if there are few files, otherwise `jobs`."""
    num_files = sum(len(source.paths) for subject in subjects for _, source in subject.volumes)
    return jobs if num_files >= FILES_FOR_PROCESSES else 1


def _remedy(pattern: Path) -> str:
    """Say what to do about a pattern that no file matches, with what its first folder without a field holds."""
    folder = next(parent for parent in pattern.parents if not set("{*?") & set(str(parent)))
    if not folder.is_dir():
        return f"The folder {folder} does not exist: correct its name."
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    holds = f"holds {list_some(names)}" if names else "is empty"
    return f"Correct the pattern: the folder {folder} {holds}."
