"""Subjects that cannot be used: all told at once and refused, or left out, counted and named."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError
from upfield.common.progress import say
from upfield.sharding.cohorts.privacy import Pseudonyms
from upfield.sharding.cohorts.problems import Problem, report, write_report
from upfield.sharding.cohorts.subjects import Subject
from upfield.sharding.configuration import ShardConfig


@dataclass
class Quarantine:
    """The problems of one build, and what is to become of the subjects that have them."""

    config: ShardConfig
    """`on_error` and `max_skipped`."""
    path: Path
    """The JSON file, beside the set."""
    num_subjects: int
    """Subjects looked at."""
    problems: list[Problem] = field(default_factory=list)
    """All that were met."""
    doubts: list[Problem] = field(default_factory=list)
    """What may be meant so; the subjects are used."""
    num_shown: int = 0
    """How many of them have been shown."""

    def admit(self, problems: Sequence[Problem]) -> None:
        """Take in what was found before anything is computed, all at once.

        Raises:
            InputError: there are some and the configuration says fail, or more subjects have them than may be left out.
        """
        self.problems += [problem for problem in problems if not problem.is_doubt]
        self.doubts += [problem for problem in problems if problem.is_doubt]
        if self.doubts:
            say(report(sorted(self.doubts), what="doubts, built all the same; look at them with upfield preview:"))
        self.judge()

    def note(self, problems: Sequence[Problem]) -> None:
        """Take in what turned up on the way: work goes on, to find all there is, unless too many are left out already.

        Raises:
            InputError: more subjects have problems than may be left out.
        """
        for problem in problems:
            say(f"{problem.file}: {problem.message}")
        self.problems += problems
        if self.config.on_error == "skip" and len(self.names) > self.config.max_skipped:
            self.judge()

    def judge(self) -> None:
        """Show all problems and note them in the file; refuse what the configuration does not allow.

        Raises:
            InputError: there are some and the configuration says fail, or more subjects have them than may be left out.
        """
        if not self.problems and not self.doubts:
            self.path.unlink(missing_ok=True)
            return
        self._show()
        if not self.problems:
            return
        found = f"found {len(self.problems)} problems in {len(self.names)}, listed above and in {self.path}"
        if self.config.on_error == "fail":
            raise InputError(
                f"expected {self.num_subjects} subjects without problems, {found}; mend them, or leave such subjects "
                f"out with --on_error skip --max_skipped {len(self.names)}"
            )
        if len(self.names) > self.config.max_skipped:
            raise InputError(
                f"expected at most {self.config.max_skipped} subjects to leave out, {found}; mend some or raise "
                "--max_skipped"
            )

    def refuse(self, problems: Sequence[Problem]) -> None:
        """Refuse what was found too late to leave subjects out.

        Raises:
            InputError: there is some.
        """
        if problems:
            self.problems += problems
            self._show()
            raise InputError(
                f"expected scans that are all different, found {len(problems)} that are not, listed above and in "
                f"{self.path}; take them out of the cohort's files or patterns and run the same command again"
            )

    def _show(self) -> None:
        problems = sorted(self.problems)
        if len(problems) != self.num_shown:
            self.num_shown = len(problems)
            say(report(problems))
        try:
            write_report(self.path, problems, sorted(self.doubts), self.num_subjects)
        except OSError as error:
            say(f"{self.path}: expected to note them there too, found {error.strerror}")

    @property
    def names(self) -> set[tuple[str, str]]:
        """(cohort, name) of each subject with a problem."""
        return {(problem.cohort, problem.subject) for problem in self.problems}

    def healthy(self, subjects: Iterable[Subject]) -> list[Subject]:
        """Give the subjects without a problem."""
        names = self.names
        return [subject for subject in subjects if (subject.cohort, subject.name) not in names]

    def public_problems(self, pseudonyms: Pseudonyms | None) -> list[dict[str, Any]]:
        """Give what the set itself says about subjects that were left out."""
        return _public(self.problems, pseudonyms)

    def public_doubts(self, pseudonyms: Pseudonyms | None) -> list[dict[str, Any]]:
        """Give what the set itself says about subjects that are in it and may not be as they should."""
        names = self.names
        return _public([doubt for doubt in self.doubts if (doubt.cohort, doubt.subject) not in names], pseudonyms)


def _public(problems: list[Problem], pseudonyms: Pseudonyms | None) -> list[dict[str, Any]]:
    """Give problems by subject: cohort, subject, and each one's field, check and reason.

    Reasons may state what a header says, so there are none where there are pseudonyms.
    """
    by_subject: dict[tuple[str, str], list[dict[str, str]]] = {}
    for problem in sorted(problems):
        reason = {} if pseudonyms else {"reason": problem.message}
        told = {"field": problem.field, "check": problem.check} | reason
        by_subject.setdefault((problem.cohort, problem.subject), []).append(told)
    return [
        {"cohort": cohort, "subject": pseudonyms.of(cohort, name) if pseudonyms else name, "problems": its}
        for (cohort, name), its in by_subject.items()
    ]
