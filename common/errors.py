"""Errors that every command turns into one line: exit code 2 if the user can fix them, otherwise 1."""

from pathlib import Path


class InputError(ValueError):
    """The user's input or configuration is wrong. The message names the place, the problem and the remedy."""

    met_by_all = False
    """Whether all processes of a job raise this same error. If so, one of them may report it for all."""


class VolumeError(InputError):
    """A file does not hold one usable 3-D volume.

    The error keeps two parts separate: the file's name, which is private, and the problem, which may be published.
    """

    def __init__(self, where: str, problem: str) -> None:
        """Build the message from the name and the problem.

        Args:
            where: name of the file or volume.
            problem: the problem and the remedy, without file names.
        """
        # The message of a library may span several lines.
        problem = " ".join(problem.split())
        super().__init__(where, problem)
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        """Return both parts as one message."""
        return f"{self.where}: {self.problem}"


class UnwritableError(InputError):
    """Files cannot be created in the folder that the user chose for them."""

    # A class method, because an error with a constructor of its own could not be unpickled in another process.
    @classmethod
    def from_system(cls, place: Path, option: str, error: OSError) -> "UnwritableError":
        """Build the error from an error of the operating system.

        Args:
            place: folder or file that cannot be written, as the user named it.
            option: option that named it, such as `--out`.
            error: error of the operating system.
        """
        return cls(f"{place}: cannot write there ({error.strerror or error}). Choose another {option}.")


class ShardSetError(InputError):
    """A shard set is missing, incomplete or damaged, or the command cannot use it."""


class RunError(RuntimeError):
    """Work that started correctly cannot continue. The command prints one line and returns exit code 1."""

    met_by_all = False
    """Whether every process of a job raises this same error, as for `InputError`."""


class DivergedError(RunError):
    """A training run computed values that are not finite. A second attempt would fail in the same way."""


class FetchError(RunError):
    """A remote file could not be downloaded. This error can occur in some processes of a job and not in others."""


class MemoryShortageError(RunError):
    """The memory of a device or machine ran out. This error can occur in some processes of a job and not in others."""
