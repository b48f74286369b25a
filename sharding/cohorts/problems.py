"""Problems with the files of subjects, which are collected one by one and reported together."""

import sys
import textwrap
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from upfield.common.files import write_json
from upfield.common.tables import MOST_ROWS, PLAIN_WIDTH, counted, terminal_width, text_table
from upfield.sharding.shardset.namesakes import Member

Field = Literal["low", "high", "labels"]
FIELD_NAMES: dict[Field, str] = {"low": "low field", "high": "high field", "labels": "label map"}
TWIN = " = "
# Checks that a correct scan may fail: the failure is reported, and the subject is used.
DOUBTS = ("place", "resolution", "person", "slice", "labels", "head", "times", "values", "space", "air")
FAULT = "fault"
LEAST_FILE_WIDTH = 24
# A table on a narrower terminal would break its messages into columns of single words.
LEAST_TABLE_WIDTH = 120
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


def report(
    problems: Sequence[Problem], width: int | None = None, noun: str = "problem", path: Path | None = None
) -> str:
    """Return a plain-text list of at most `MOST_ROWS` problems that fits the terminal, and a line that counts all.

    A wide terminal gets a table with wrapped messages, a narrow one gets a paragraph for each problem. Long paths are
    shortened in the middle. If many subjects of a cohort have the same doubt, it gets one row.

    Args:
        problems: the problems, in the order of the rows.
        width: characters per line. By default, this is the width of the terminal, or 100 without one.
        noun: word for a problem in the last line.
        path: file that has all problems; None if there is none.
    """
    width = width or terminal_width(sys.stderr) or PLAIN_WIDTH
    rows = _without_equal_doubts(problems)
    shown = rows[:MOST_ROWS]
    text = _table(shown, width) if width >= LEAST_TABLE_WIDTH else ""
    # Long names of subjects can make a table wider than the terminal.
    if not text or max(map(len, text.splitlines())) > width:
        text = "\n".join(_paragraph(row, width) for row in shown)
    subjects = {(problem.cohort, problem.subject) for problem in problems}
    summary = f"{counted(len(problems), noun)} of {counted(len(subjects), 'subject')}"
    if len(rows) > MOST_ROWS:
        summary += f"\nThe first {MOST_ROWS} rows are shown{f'; all are in {path}' if path else ''}."
    return f"{text}\n{summary}"


def _table(problems: Sequence[Problem], width: int) -> str:
    file_width = max(width * 3 // 10, LEAST_FILE_WIDTH)
    names = ("cohort", "subject", "field", "check", "message")
    rows = [
        [*(str(getattr(problem, name)) for name in names), _shortened(problem.file, file_width)] for problem in problems
    ]
    return text_table([*names, "file"], rows, wrapped=("message",), width=width)


def _paragraph(problem: Problem, width: int) -> str:
    head = f"{problem.cohort} {problem.subject}, {FIELD_NAMES[problem.field]} ({problem.check}): {problem.message}"
    lines = textwrap.wrap(head, width, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*lines, f"  {_shortened(problem.file, width - 2)}"])


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
