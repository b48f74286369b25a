"""Errors that the user can mend; every command turns them into one line and exit code 2."""

from pathlib import Path


class InputError(ValueError):
    """The user's input or configuration is wrong; the message says what was expected, found, where, what to do."""

    met_by_all = False
    """Whether every process of a job meets this error alike, so that one of them may speak for all."""


class VolumeError(InputError):
    """A file that should hold one 3-D volume does not.

    Keeps apart where the file is, which is nobody's business outside, and what is wrong with it, which may be
    published.
    """

    def __init__(self, where: str, problem: str) -> None:
        """State the file or volume, and what was expected, found and is to be done, in words without names of files."""
        # Libraries word theirs over several lines.
        problem = " ".join(problem.split())
        super().__init__(where, problem)
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        """Give the whole message."""
        return f"{self.where}: {self.problem}"


class UnwritableError(InputError):
    """Files cannot be created in the folder that the user chose for them."""

    def __init__(self, place: Path, option: str, error: OSError) -> None:
        """Word the system's error.

        Args:
            place: folder or file as the user named it.
            option: option that named it, such as `--out`.
            error: what the system answered.
        """
        super().__init__(f"{place}: cannot write there ({error.strerror or error}). Choose another {option}.")


class ShardSetError(InputError):
    """A shard set that is missing, incomplete, damaged, or does not fit what is asked of it."""


class RunError(RuntimeError):
    """Work that began rightly cannot go on: one line and exit code 1."""

    met_by_all = False
    """As in InputError."""


class DivergedError(RunError):
    """A training whose numbers are no longer finite: the same training again would end the same."""


class FetchError(RunError):
    """A remote file cannot be had, which each process finds out for itself."""
