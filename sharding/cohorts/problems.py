"""Problems with the files of subjects, which are collected one by one and reported together."""

import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from upfield.common.files import write_json
from upfield.common.tables import terminal_width, text_table
from upfield.sharding.shardset.namesakes import Member

Field = Literal["low", "high", "labels"]
FIELD_NAMES: dict[Field, str] = {"low": "low field", "high": "high field", "labels": "label map"}
TWIN = " = "
# Checks that a correct scan may fail: the failure is reported, and the subject is used.
DOUBTS = ("place", "resolution", "person", "slice", "labels", "head", "times", "values", "space", "air")
FAULT = "fault"
LEAST_FILE_WIDTH = 24
# In narrower tables, the file stands below the message, which would have ten characters per line otherwise.
LEAST_WIDTH_OF_SIX_COLUMNS = 100
MAX_EQUAL_ROWS = 5


@dataclass(frozen=True, order=True)
class Problem:
    """One reason why a subject cannot be used. Sorting puts the problems of a subject next to each other."""

    cohort: str
    """Cohort name."""
    subject: str
    """Subject id, as it appears in the file names."""
    field: Field
    """Which of its volumes has the problem."""
    check: str
    """The check that failed: `unpaired`, `name`, `slices` (missing, duplicate or from another scan), `header`,
    `affine`, `spacing`, `side`, `steps` (distances between slices), `place` (which part of the head is shown, or where
    it lies), `space` (the space that the headers name), `values` (doubtful header values), `resolution`, `labels` (a
    label map), `air` (not told from the head), `head` (a brain without skull beside whole heads), `contrast`, `times`
    (signs of another contrast), `slice` (one seems to be from another scan), `same` (copies), `person` (a person in
    several splits), `fields` (the files of a pair differ in a field of their patterns), `voxels`,
    `fault` (of the program)."""
    file: str
    """The file, or the first file of a stack; for a copy, followed by ` = ` and the scan it equals. Never published."""
    message: str
    """The problem and its remedy, without names of files or subjects, so that it may be published."""
    details: str = ""
    """The traceback of a fault of the program; empty for other problems. Never published."""

    @classmethod
    def of_fault(cls, cohort: str, subject: str, field: Field, file: str, error: Exception) -> "Problem":
        """Return the problem of a subject on which the program failed with an error that it did not foresee."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = (
            f"this is a bug in upfield, not in the scan: {type(error).__name__} in {Path(place.filename).name}, line "
            f"{place.lineno}. Please report it with the traceback from the list of problems."
        )
        return cls(cohort, subject, field, FAULT, file, message, "".join(traceback.format_exception(error)))

    @property
    def is_doubt(self) -> bool:
        """Whether the problem is only a doubt, which does not exclude the subject."""
        return self.check in DOUBTS


def noun_of(field: Field) -> str:
    """Return the word for a volume of a field: `label map` or `scan`."""
    return "label map" if field == "labels" else "scan"


def report(problems: Sequence[Problem], width: int | None = None, noun: str = "problems") -> str:
    """Return a plain-text table with one row per problem, wrapped messages, and long paths shortened in the middle.

    If many subjects of a cohort have the same doubt, it gets one row.

    Args:
        problems: the problems, in the order of the rows.
        width: characters per line. By default, this is the width of the terminal; without a terminal, lines are long
            enough for the file names.
        noun: word for the problems in the last line.
    """
    width = width or terminal_width(sys.stderr)
    longest = max((len(problem.file) for problem in problems), default=0)
    file_width = longest if width is None else max(width * 3 // 10, LEAST_FILE_WIDTH)
    names = ["cohort", "subject", "field", "check", "message", "file"]
    rows = [
        [*(str(getattr(problem, name)) for name in names[:-1]), _shortened(problem.file, file_width)]
        for problem in _without_equal_doubts(problems)
    ]
    if width is not None and width < LEAST_WIDTH_OF_SIX_COLUMNS:
        names, rows = names[:-1], [[*cells, f"{message}\n{file}".rstrip()] for *cells, message, file in rows]
    table = text_table(names, rows, wrapped=("message",), width=width or max(160, longest + 100))
    subjects = Counter((problem.cohort, problem.subject) for problem in problems)
    return f"{table}\n{len(problems)} {noun} of {len(subjects)} subjects"


def _without_equal_doubts(problems: Sequence[Problem]) -> list[Problem]:
    """Replace doubts that are equal for many subjects of a cohort by the first of them, which then counts the rest."""

    def kind(problem: Problem) -> tuple[str, ...]:
        return problem.cohort, problem.field, problem.check, problem.message

    counts = Counter(kind(problem) for problem in problems)
    rows: list[Problem] = []
    shown: set[tuple[str, ...]] = set()
    for problem in problems:
        if not problem.is_doubt or counts[kind(problem)] <= MAX_EQUAL_ROWS:
            rows.append(problem)
        elif kind(problem) not in shown:
            shown.add(kind(problem))
            rows.append(replace(problem, subject=f"{problem.subject} and {counts[kind(problem)] - 1} others"))
    return rows


def _shortened(text: str, width: int) -> str:
    """Shorten a text in the middle, because file names differ mostly at their ends."""
    if len(text) <= width:
        return text
    first, separator, second = text.partition(TWIN)
    if separator:
        # Both files stay visible, each in half of the width.
        half = (width - len(TWIN)) // 2
        return f"{_shortened(first, half)}{TWIN}{_shortened(second, half)}"
    head = (width - 3) // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def write_report(
    path: Path,
    problems: Sequence[Problem],
    doubts: Sequence[Problem],
    subjects_checked: int,
    namesakes: Sequence[Sequence[Member]] = (),
) -> None:
    """Write problems as JSON. The file has full paths and is meant for the owner of the scans, not for publication.

    Args:
        path: the file to write.
        problems: the problems, in the order in which they are listed.
        doubts: the doubts, in the order in which they are listed.
        subjects_checked: number of subjects that were checked.
        namesakes: groups of subjects in different splits that may be the same person.
    """
    subjects = {(problem.cohort, problem.subject) for problem in problems}
    tree: dict[str, Any] = {
        "subjects_checked": subjects_checked,
        "subjects_with_problems": len(subjects),
        "problems": [_to_tree(problem) for problem in problems],
        "doubts": [_to_tree(doubt) for doubt in doubts],
    }
    if namesakes:
        tree["namesakes"] = [[asdict(member) for member in group] for group in namesakes]
    write_json(path, tree)


def _to_tree(problem: Problem) -> dict[str, str]:
    return {key: value for key, value in asdict(problem).items() if key != "details" or value}
