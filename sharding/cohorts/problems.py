"""Problems of subjects' files, collected one by one and reported together."""

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
# Checks whose findings may be intended: they are reported, and the subject is built.
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
    """What was checked: `unpaired`, `name`, `slices` (which ones there are, and that they are of one scan), `header`,
    `affine`, `spacing`, `side`, `steps` (from slice to slice), `place` (what is shown, and where), `resolution`,
    `same`, `voxels`."""
    file: str
    """The file, or the first of a stack, and after ` = ` perhaps one that it equals; local, never published."""
    message: str
    """What is wrong and what to do, without names of files or subjects, so that it may be published."""

    @property
    def is_doubt(self) -> bool:
        """Whether the subject can be used nevertheless."""
        return self.check in DOUBTS


def report(problems: Sequence[Problem], width: int | None = None, what: str = "problems") -> str:
    """Return problems as a plain-text table: a row for each, messages wrapped, long paths cut in the middle.

    Args:
        problems: in the order of the rows.
        width: characters per line; None is the terminal's width, or without a terminal what file names need.
        what: the noun for them in the last line.
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
    """Cut the middle out, because names of files mostly differ at the end."""
    if len(text) <= width:
        return text
    first, two, second = text.partition(TWIN)
    if two:
        # Both files are shown, each with half of the width.
        half = (width - len(TWIN)) // 2
        return f"{_shortened(first, half)}{TWIN}{_shortened(second, half)}"
    head = (width - 3) // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def write_report(path: Path, problems: Sequence[Problem], doubts: Sequence[Problem], subjects_checked: int) -> None:
    """Write problems as JSON, with full paths, for the owner of the files; not for publication.

    Args:
        path: the file.
        problems: in order.
        doubts: in order.
        subjects_checked: number of subjects that were checked.
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
