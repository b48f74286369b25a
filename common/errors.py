"""Errors that every command turns into one line: exit code 2 if the user can fix them, otherwise 1."""

from pathlib import Path


class InputError(ValueError):
    """The user's input or configuration is wrong. The message names the place, the problem and the remedy."""

    met_by_all = False
    """Whether every process of a job raises this same error, so that one of them may report it for all."""


class VolumeError(InputError):
    """A file does not hold one usable 3-D volume.

    The error keeps two parts separate: the file's place, which is private, and the problem, which may be published.
    """

    def __init__(self, where: str, problem: str) -> None:
        """Combine the two parts.

        Args:
            where: file or volume.
            problem: what is wrong and what to do, without names of files.
        """
        # Messages of libraries may span several lines.
        problem = " ".join(problem.split())
        super().__init__(where, problem)
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        """Return the whole message."""
        return f"{self.where}: {self.problem}"


class UnwritableError(InputError):
    """Files cannot be created in the folder that the user chose for them."""

    # Not a constructor of its own: an error must keep the usual one to be unpickled in another process.
    @classmethod
    def from_system(cls, place: Path, option: str, error: OSError) -> "UnwritableError":
        """Build the error from one of the system.

        Args:
            place: folder or file as the user named it.
            option: option that named it, such as `--out`.
            error: the system's error.
        """
        return cls(f"{place}: cannot write there ({error.strerror or error}). Choose another {option}.")


class ShardSetError(InputError):
    """A shard set is missing, incomplete or damaged, or does not suit the command."""


class RunError(RuntimeError):
    """Work that started correctly cannot continue: one line and exit code 1."""

    met_by_all = False
    """See `InputError`."""


class DivergedError(RunError):
    """The numbers of a training run are no longer finite. Running it again would end the same way."""


class FetchError(RunError):
    """A remote file could not be downloaded. Each process of a job finds this out by itself."""
