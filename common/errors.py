"""Errors that every command turns into one line: exit code 2 if the user can fix them, otherwise 1."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

EXIT_INPUT, EXIT_FAILURE, EXIT_INTERRUPTED = 2, 1, 130
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class InputError(ValueError):
    """The user's input or configuration is wrong. The message names the place, the problem and the remedy.

    Examples:
        >>> import upfield
        >>> upfield.read_scan("missing.nii.gz")
        Traceback (most recent call last):
            ...
        upfield.common.errors.VolumeError: missing.nii.gz: there is no such file. Check the path.
        >>> issubclass(upfield.InputError, ValueError)
        True
    """

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
    """Work that started correctly cannot continue. The command prints one line and returns exit code 1.

    Examples:
        >>> import upfield
        >>> issubclass(upfield.RunError, RuntimeError)
        True
    """

    met_by_all = False
    """Whether every process of a job raises this same error, as for `InputError`."""
    is_agreed = False
    """Whether the processes of a job have agreed that this one prints the error, so that it need not ask the others."""


class DivergedError(RunError):
    """A training run computed values that are not finite. A second attempt would fail in the same way."""


class FetchError(RunError):
    """A remote file could not be downloaded. This error can occur in some processes of a job and not in others."""


class CommandError(FetchError):
    """The command that the user named for downloads failed for a file. The exit code is 2."""


class OutputError(RunError):
    """No further result can be written, for example because the disk is full."""


class WrongContentError(FetchError):
    """A remote file arrived each time with a wrong checksum, so the store holds wrong bytes. The exit code is 2."""


class MemoryShortageError(RunError):
    """The memory of a device or machine ran out. This error can occur in some processes of a job and not in others."""


def explain_error(error: BaseException) -> tuple[str, int]:
    """Return one line about an error, and the exit code: 2 if the user can fix the problem, otherwise 1.

    An error that the program did not foresee is a fault of the program. The line says so.
    """
    if isinstance(error, InputError | RunError):
        message = str(error)
        code = EXIT_INPUT if isinstance(error, InputError | CommandError | WrongContentError) else EXIT_FAILURE
    elif isinstance(error, OSError):
        message, code = _explain_system_error(error)
    elif isinstance(error, MemoryError):
        message, code = "there is not enough memory. Use a machine with more memory, or a smaller volume.", EXIT_FAILURE
    else:
        message = f"{type(error).__name__}: {error}. This is a bug in upfield, not in your input: please report it."
        code = EXIT_FAILURE
    return " ".join(message.split()), code


def _explain_system_error(error: OSError) -> tuple[str, int]:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FORBIDDEN:
        reason = (error.strerror or "permission denied").lower()
        return f"{where}{reason}. Change the permissions, or choose another place.", EXIT_INPUT
    if "usable temporary directory" in str(error):  # tempfile's own words
        return "There is no folder for temporary files. Set TMPDIR to a folder that can be written.", EXIT_INPUT
    misplaced = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError | FileExistsError)
    return f"{where}{error.strerror or error}.", EXIT_INPUT if misplaced else EXIT_FAILURE


@contextmanager
def refused_arguments() -> Iterator[None]:
    """Turn the ValueError with which a configuration refuses an argument into an InputError."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


def expect_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError if the value of an argument is none of the choices."""
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, found {value!r}.")


def failure_of(message: str, errors: Sequence[Exception]) -> InputError | RunError:
    """Return the error that ends a command some of whose items failed, for example scans.

    The exit code is 1 if any of `errors` is not the user's to fix. With `--debug`, their tracebacks are shown.

    Args:
        message: how many items failed, and where the reasons are.
        errors: the errors of the items, at least one.
    """
    kind = InputError if all(explain_error(error)[1] == EXIT_INPUT for error in errors) else RunError
    failure = kind(message)
    failure.__cause__ = ExceptionGroup("errors of single items", errors)
    return failure
