"""Report all subjects that cannot be used. Then stop the build, or leave these subjects out and list them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError, RunError
from upfield.common.progress import say
from upfield.common.tables import counted
from upfield.sharding.cohorts.privacy import Pseudonyms
from upfield.sharding.cohorts.problems import FAULT, Problem, report, write_report
from upfield.sharding.cohorts.subjects import Subject
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shardset.namesakes import Member, namesakes_message


@dataclass
class Quarantine:
    """The problems of one build, and the decision about the subjects that have them."""

    config: ShardConfig
    """The configuration, of which `on_error` and `max_skipped` are used."""
    path: Path
    """The JSON file that problems are written to, beside the set."""
    num_subjects: int
    """Number of subjects that were checked."""
    problems: list[Problem] = field(default_factory=list)
    """All problems so far."""
    doubts: list[Problem] = field(default_factory=list)
    """Results of the checks that a correct scan may fail; the subjects are used."""
    namesakes: list[tuple[Member, ...]] = field(default_factory=list)
    """Groups of subjects in different splits that may be the same person."""
    num_shown: int = 0
    """Number of problems that have been printed."""

    def admit(self, problems: Sequence[Problem]) -> None:
        """Add the problems that were found before any voxel was read.

        Raises:
            InputError: subjects have problems and `on_error` is `fail`, or more subjects have problems than
                `max_skipped` allows.
        """
        self.problems += [problem for problem in problems if not problem.is_doubt]
        self.doubt([problem for problem in problems if problem.is_doubt])
        if self.namesakes:
            say(f"{namesakes_message(self.namesakes)} They are listed in {self.path}.")
        self.judge()

    def doubt(self, doubts: Sequence[Problem]) -> None:
        """Add doubts and print them. `judge` writes them to the file."""
        self.doubts += doubts
        if doubts:
            say(report(sorted(doubts), noun="doubt", path=self.path))
            say("These subjects are still included. Check them with upfield preview.")

    def note(self, problems: Sequence[Problem]) -> None:
        """Add problems that a worker found. The build continues, unless too many subjects are left out already.

        Raises:
            InputError: `on_error` is `skip`, and more subjects have problems than `max_skipped` allows.
        """
        for problem in problems:
            say(f"{problem.file}: {problem.message}")
        self.problems += problems
        if self.config.on_error == "skip" and len(self.names) > self.config.max_skipped:
            self.judge()

    def judge(self) -> None:
        """Print all problems and write them to the file; stop the build unless the configuration allows them.

        Raises:
            InputError: subjects have problems and `on_error` is `fail`, or more subjects have problems than
                `max_skipped` allows.
            RunError: the same, and some of the problems are faults of the program.
        """
        if not (self.problems or self.doubts or self.namesakes):
            self.path.unlink(missing_ok=True)
            return
        self._show()
        if not self.problems:
            return
        summary = (
            f"{len(self.names)} of {counted(self.num_subjects, 'subject')} {'has' if len(self.names) == 1 else 'have'} "
            f"{counted(len(self.problems), 'problem')}, listed in {self.path}"
        )
        kind = RunError if any(problem.check == FAULT for problem in self.problems) else InputError
        if self.config.on_error == "fail":
            skip = f", or leave these subjects out with --on_error skip --max_skipped {len(self.names)}"
            raise kind(f"{summary}. Fix them{skip if len(self.names) < self.num_subjects else ''}.")
        if len(self.names) > self.config.max_skipped:
            raise kind(
                f"{summary}, but --max_skipped allows only {self.config.max_skipped} subjects to be left out. "
                "Fix some of the files, or raise --max_skipped."
            )

    def refuse(self, problems: Sequence[Problem]) -> None:
        """Stop the build because of copied scans, which are found too late to be left out.

        Raises:
            InputError: `problems` is not empty.
        """
        if problems:
            self.problems += problems
            self._show()
            raise InputError(
                f"{counted(len(problems), 'scan')} {'is a copy' if len(problems) == 1 else 'are copies'} of others, "
                f"listed in {self.path}. Remove copies from the cohort's files or patterns, and run the same command "
                "again."
            )

    def _show(self) -> None:
        problems = sorted(self.problems)
        if len(problems) != self.num_shown:
            self.num_shown = len(problems)
            say(report(problems, path=self.path))
        try:
            write_report(self.path, problems, sorted(self.doubts), self.num_subjects, self.namesakes)
        except OSError as error:
            say(f"{self.path}: the list of problems could not be written to this file ({error.strerror}).")

    @property
    def names(self) -> set[tuple[str, str]]:
        """(cohort, name) of each subject with a problem."""
        return {(problem.cohort, problem.subject) for problem in self.problems}

    def healthy(self, subjects: Iterable[Subject]) -> list[Subject]:
        """Return the subjects without a problem."""
        names = self.names
        return [subject for subject in subjects if (subject.cohort, subject.name) not in names]

    def public_problems(self, pseudonyms: Pseudonyms | None) -> list[dict[str, Any]]:
        """Return the manifest's list of subjects that were left out."""
        return _public(self.problems, pseudonyms)

    def public_doubts(self, pseudonyms: Pseudonyms | None) -> list[dict[str, Any]]:
        """Return the manifest's list of subjects that are in the set in spite of doubts."""
        names = self.names
        return _public([doubt for doubt in self.doubts if (doubt.cohort, doubt.subject) not in names], pseudonyms)


def _public(problems: list[Problem], pseudonyms: Pseudonyms | None) -> list[dict[str, Any]]:
    """Group problems by subject. Each group holds the field, check and reason of each of the subject's problems.

    Reasons may quote headers, so they are left out if there are pseudonyms.
    """
    by_subject: dict[tuple[str, str], list[dict[str, str]]] = {}
    for problem in sorted(problems):
        reason = {} if pseudonyms else {"reason": problem.message}
        entry = {"field": problem.field, "check": problem.check} | reason
        by_subject.setdefault((problem.cohort, problem.subject), []).append(entry)
    return [
        {"cohort": cohort, "subject": pseudonyms.of(cohort, name) if pseudonyms else name, "problems": entries}
        for (cohort, name), entries in by_subject.items()
    ]
