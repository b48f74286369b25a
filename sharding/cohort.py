"""Path patterns -> the subjects of a cohort, their files, and the split each one belongs to."""

import glob
import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from upfield.sharding.configuration import CohortConfig
from upfield.sharding.errors import InputError

SPLITS = ("train", "val", "test")
Split = Literal["train", "val", "test"]
FIELD = re.compile(r"{(\w+)}")
# A key is a tar member's name: no dot (WebDataset cuts there), no space (the index is split at spaces), and short
# enough for a plain tar header.
NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")
MAX_ID_LENGTH = 40


@dataclass(frozen=True)
class Source:
    """The files of one volume."""

    paths: tuple[Path, ...]
    """One volume file, or slice files in slice order."""
    stacked: bool
    """Whether the files are slices."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Values of the pattern's free fields."""

    def __str__(self) -> str:
        """Name the files as errors do."""
        return str(self.paths[0]) if not self.stacked else f"{self.paths[0]} .. {self.paths[-1].name}"


@dataclass(frozen=True)
class Unit:
    """One low/high pair of volumes: what a sample's key says besides its slice."""

    cohort: str
    """Cohort name."""
    subject: str
    """Subject id."""
    kind: Literal["real", "synthetic"]
    """Where the low field comes from."""
    variant: int
    """Number of the synthetic variant; 0 for real."""

    def key(self, x: int) -> str:
        """Give the sample key of sagittal slice `x`."""
        return f"{self.cohort}-{_key_part(self.subject)}-{self.kind}-{self.variant}-x{x:03d}"


@dataclass(frozen=True)
class Subject:
    """One subject of a cohort."""

    cohort: str
    """Cohort name."""
    id: str
    """Subject id, as the pattern found it."""
    split: Split
    """The one split that all its samples are in."""
    high: Source
    """High-field files."""
    low: Source | None
    """Low-field files, or None where all pairs are synthetic."""
    fit: Literal["resize", "crop_pad"]
    """How its volumes are brought to the grids."""
    units: tuple[Unit, ...]
    """The pairs made from it."""


def find_subjects(cohort: CohortConfig, root: Path) -> list[Subject]:
    """Find a cohort's subjects, pair their files and assign their splits.

    Args:
        cohort: patterns, split and kinds.
        root: folder that relative patterns start from.

    Returns:
        Subjects sorted by id.

    Raises:
        InputError: nothing matches, a subject lacks a partner, slices are missing or doubled, or the split asks for
            more than there is.
    """
    high = match(cohort.high, root, f"cohort {cohort.name}: high")
    low = match(cohort.low, root, f"cohort {cohort.name}: low") if cohort.low is not None else {}
    if cohort.low is not None:
        _refuse_unpaired(cohort, low, high)
    _refuse_equal_keys(cohort, sorted(high))
    splits = assign_splits(cohort, sorted(high))
    return [_subject(cohort, subject, splits[subject], high[subject], low.get(subject)) for subject in sorted(high)]


def _subject(cohort: CohortConfig, subject: str, split: Split, high: Source, low: Source | None) -> Subject:
    units: list[Unit] = [Unit(cohort.name, subject, "real", 0)] if low else []
    # Held-out figures are of real pairs wherever the cohort has them.
    if split == "train" or not low:
        units += [Unit(cohort.name, subject, "synthetic", variant) for variant in range(cohort.synthetic)]
    fit = cohort.fit or ("resize" if high.stacked else "crop_pad")
    return Subject(cohort.name, subject, split, high, low, fit, tuple(units))


def match(pattern: str, root: Path, where: str) -> dict[str, Source]:
    """Find the files of a pattern and group them by `{subject}`.

    Args:
        pattern: path with `{subject}`, perhaps `{slice}`, free `{fields}`, and the wildcards `*`, `?` and `**`.
        root: folder that a relative pattern starts from.
        where: what to call the pattern in errors.

    Returns:
        Source per subject id.

    Raises:
        InputError: nothing matches, or a subject's files are doubled or have gaps.
    """
    anchored = (root / pattern).as_posix()
    expression = re.compile(_to_regex(anchored))
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    metadata: dict[str, dict[str, str]] = {}
    for name in sorted(glob.glob(_to_glob(anchored), recursive=True)):
        if not (parts := expression.fullmatch(name)):
            continue
        fields = parts.groupdict()
        subject, number = fields.pop("subject"), int(fields.pop("slice", 0))
        if number in found[subject]:
            raise InputError(
                f"{where}: expected one file per subject{' and slice' if '{slice}' in pattern else ''}, found "
                f"{found[subject][number]} and {name} for {subject}; narrow the pattern or remove one"
            )
        found[subject][number] = Path(name)
        metadata[subject] = fields
    if not found:
        raise InputError(f"{where}: expected files matching {anchored}, found none; check the pattern and the folder")
    stacked = "{slice}" in pattern
    for subject, files in found.items():
        _refuse_gaps(files, f"{where}: subject {subject}")
    return {
        subject: Source(tuple(files[number] for number in sorted(files)), stacked, metadata[subject])
        for subject, files in found.items()
    }


def _refuse_gaps(files: dict[int, Path], where: str) -> None:
    numbers = sorted(files)
    missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if missing:
        raise InputError(
            f"{where}: expected slices {numbers[0]} to {numbers[-1]} without gaps, found {len(missing)} missing "
            f"({_some(missing)}) in {files[numbers[0]].parent}; complete the stack or leave the subject out"
        )


def _refuse_unpaired(cohort: CohortConfig, low: dict[str, Source], high: dict[str, Source]) -> None:
    alone = [f"{s} (low field only)" for s in sorted(low.keys() - high.keys())]
    alone += [f"{s} (high field only)" for s in sorted(high.keys() - low.keys())]
    if alone:
        raise InputError(
            f"cohort {cohort.name}: expected low and high field for each of {len(low.keys() | high.keys())} subjects, "
            f"found {len(alone)} unpaired: {_some(alone)}; complete the pairs or move those files away"
        )


def _key_part(subject: str) -> str:
    return NOT_IN_KEYS.sub("_", subject)


def _refuse_equal_keys(cohort: CohortConfig, subjects: list[str]) -> None:
    taken: dict[str, str] = {}
    for subject in subjects:
        part = _key_part(subject)
        if len(part) > MAX_ID_LENGTH or part in taken:
            raise InputError(
                f"cohort {cohort.name}: expected subject ids of at most {MAX_ID_LENGTH} characters that differ in "
                f"letters, digits, '-' or '_', found {subject!r}{f' and {taken[part]!r}' if part in taken else ''}; "
                "rename the files"
            )
        taken[part] = subject


def _some(items: list) -> str:
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def assign_splits(cohort: CohortConfig, subjects: list[str]) -> dict[str, Split]:
    """Assign each subject its split, by a list of ids or by a stable hash of cohort and id.

    Counts take the subjects with the smallest hashes, fractions those whose hash lies below a bound, so nothing depends
    on other cohorts, on the order of files, or on the seed.

    Raises:
        InputError: more subjects asked for than there are, an id that does not exist or stands in both splits.
    """
    splits: dict[str, Split] = {}
    position = {subject: _hash(cohort.name, subject) for subject in subjects}
    bound = 0.0
    # Lists first, so that a count never takes a subject that the other split names.
    for name in sorted(("test", "val"), key=lambda split: not isinstance(cohort.split.get(split), list)):
        wanted = cohort.split.get(name, 0)
        free = [subject for subject in sorted(subjects, key=position.__getitem__) if subject not in splits]
        if isinstance(wanted, list):
            chosen = _listed(cohort, name, wanted, free)
        elif isinstance(wanted, float) and 0 < wanted < 1:
            chosen = [subject for subject in free if bound <= position[subject] < bound + wanted]
            bound += wanted
            if bound > 1:
                raise InputError(f"cohort {cohort.name}: split: expected fractions up to 1 together, found {bound:g}")
        else:
            chosen = _counted(cohort, name, wanted, free)
        splits |= dict.fromkeys(chosen, name)
    return {subject: splits.get(subject, "train") for subject in subjects}


def _listed(cohort: CohortConfig, name: str, wanted: list[str], free: list[str]) -> list[str]:
    if absent := [subject for subject in wanted if subject not in free]:
        raise InputError(
            f"cohort {cohort.name}: split.{name}: expected ids of its subjects, each in one split, "
            f"found {_some(absent)}; known and free: {_some(sorted(free))}"
        )
    return wanted


def _counted(cohort: CohortConfig, name: str, wanted: float, free: list[str]) -> list[str]:
    if not 0 <= wanted <= len(free) or wanted != int(wanted):
        raise InputError(
            f"cohort {cohort.name}: split.{name}: expected a count from 0 to {len(free)}, a fraction below 1 or "
            f"a list, found {wanted}"
        )
    return free[: int(wanted)]


def _hash(cohort: str, subject: str) -> float:
    digest = hashlib.sha256(f"{cohort}/{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _to_glob(pattern: str) -> str:
    """Replace each field by a wildcard; brackets are literal in our patterns."""
    return FIELD.sub("*", pattern).replace("[", "[[]")


def _to_regex(pattern: str) -> str:
    seen: set[str] = set()
    pieces = re.split(r"({\w+}|\*\*/|\*|\?)", pattern)
    return "".join(_piece_to_regex(piece, seen) for piece in pieces)


def _piece_to_regex(piece: str, seen: set[str]) -> str:
    wildcards = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    if piece in wildcards:
        return wildcards[piece]
    if not (parts := FIELD.fullmatch(piece)):
        return re.escape(piece)
    name = parts[1]
    if name in seen:
        return f"(?P={name})"
    seen.add(name)
    return f"(?P<{name}>{r'[0-9]+' if name == 'slice' else '[^/]+?'})"
