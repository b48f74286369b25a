"""Translate the errors of a store's client into messages that name the address."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from upfield.common.addresses import format_address
from upfield.common.errors import InputError, RunError


class RangesIgnoredError(InputError):
    """A store answers a request for a range of bytes with the whole object."""

    def __init__(self, place: str, remedy: str = "Download whole files from it.") -> None:
        """Name the object, and what to do.

        Args:
            place: address of the object.
            remedy: what the user can do.
        """
        super().__init__(
            f"{place}: the store does not answer requests for a range of bytes; it sends the whole file. {remedy}"
        )


@contextmanager
def store_errors(place: str, doing: str) -> Iterator[None]:
    """Raise InputError or RunError, which name the address, for errors of a store's client.

    Args:
        place: address that the message names.
        doing: operation that may fail, such as `reading`.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        refuse_denied(place, doing, "list, read and write", error)
        if isinstance(error, FileNotFoundError) and error.filename is None:
            raise InputError(
                f"{place}: no such bucket or folder; {doing} failed ({describe_error(error)}). "
                "Create it, or check the address."
            ) from error
        raise RunError(
            f"{place}: {doing} failed ({describe_error(error)}). "
            "Check the connection and run the same command again; it continues from here."
        ) from error


def refuse_denied(place: str, doing: str, rights: str, error: Exception) -> None:
    """Raise InputError if an error of a store's client means that access was denied.

    Args:
        place: address that the message names.
        doing: operation that failed, such as `reading`.
        rights: operations that upfield needs there, such as `read`.
        error: error of the client. Each client has error classes of its own, which may not be installed.
    """
    by_store = isinstance(error, PermissionError) and error.filename is None
    if by_store or "Credentials" in type(error).__name__:
        raise InputError(
            f"{place}: permission denied while {doing} ({describe_error(error)}). "
            f"Check the credentials and the bucket's policy: upfield needs to {rights} there."
        ) from error


def is_local(error: Exception) -> bool:
    """Return whether an error comes from this machine's disk and not from the store."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC)


def describe_error(error: Exception) -> str:
    """Return the text of an error on one line, or the name of its class if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def bad_address(address: str, error: Exception) -> InputError:
    """Return the error for an address that a client cannot open."""
    return InputError(
        f"{format_address(address)}: this is not an address such as s3://bucket/folder ({describe_error(error)}). "
        "Check the address."
    )
