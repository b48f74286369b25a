"""What is wrong with a subject's files: found one by one, told all at once."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from upfield.common.files import write_json
from upfield.common.tables import terminal_width, text_table

Field = Literal["low", "high"]
TWIN = " = "
# What may be meant so: it is told, and built.
DOUBTS = ("place", "resolution")
LEAST_FILE_WIDTH = 24


@dataclass(frozen=True, order=True)
class Problem:
    """One reason why a subject cannot be used; sorted, those of a subject follow each other."""

    cohort: str
    """Cohort name."""
    subject: str
    """Subject id, as its file names spell it."""
    field: Field
    """Which of its two volumes has the problem."""
    check: str
    """What was looked at: `unpaired`, `name`, `slices` (which ones there are, and that they are of one scan), `header`,
    `affine`, `spacing`, `side`, `steps` (from slice to slice), `place` (what is shown, and where), `resolution`,
    `same`, `voxels`."""
    file: str
    """The file, or the first of a stack, and perhaps after ` = ` one that it equals; local, never published."""
    message: str
    """Expected, found, what to do; without names of files or subjects, so that it may be published."""

    @property
    def is_doubt(self) -> bool:
        """Whether the subject can be used all the same."""
        return self.check in DOUBTS


def report(problems: Sequence[Problem], width: int | None = None, what: str = "problems") -> str:
    """Lay problems out as a table of plain text: a row for each, messages wrapped, long paths cut in the middle.

    Args:
        problems: in the order of the rows.
        width: characters per line; None takes the terminal's, and elsewhere as many as file names need.
        what: what they are called in the last line.
    """
    width = width or terminal_width(sys.stderr)
    longest = max((len(problem.file) for problem in problems), default=0)
    file_width = longest if width is None else max(width * 3 // 10, LEAST_FILE_WIDTH)
    names = ("cohort", "subject", "field", "check", "message")
    rows = [
        [*(str(getattr(problem, name)) for name in names), _shortened(problem.file, file_width)] for problem in problems
    ]
    table = text_table([*names, "file"], rows, wrapped=("message",), width=width or max(160, longest + 100))
    subjects = Counter((problem.cohort, problem.subject) for problem in problems)
    return f"{table}\n{len(problems)} {what} of {len(subjects)} subjects"


def _shortened(text: str, width: int) -> str:
    """Cut the middle out; what tells files apart is mostly at the end."""
    if len(text) <= width:
        return text
    first, two, second = text.partition(TWIN)
    if two:
        # Whom it equals is worth a longer line.
        half = (width - len(TWIN)) // 2
        return f"{_shortened(first, half)}{TWIN}{_shortened(second, half)}"
    head = (width - 3) // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def write_report(path: Path, problems: Sequence[Problem], doubts: Sequence[Problem], subjects_checked: int) -> None:
    """Write problems as JSON, with the paths of their files in full: for who has the files, not for publication.

    Args:
        path: the file.
        problems: in order.
        doubts: in order.
        subjects_checked: how many subjects were looked at.
    """
    subjects = {(problem.cohort, problem.subject) for problem in problems}
    write_json(
        path,
        {
            "subjects_checked": subjects_checked,
            "subjects_with_problems": len(subjects),
            "problems": [asdict(problem) for problem in problems],
            "doubts": [asdict(doubt) for doubt in doubts],
        },
    )
