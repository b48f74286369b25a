"""Prepare a set for publication: replace names by pseudonyms, and remove private folders from path patterns.

A pseudonym is the HMAC-SHA256 of cohort and name (RFC 2104), truncated to 64 bits. Without the key, nobody can check
whether a known name belongs to a pseudonym. With the same key, a subject has the same pseudonym in every set.
"""

import csv
import hashlib
import hmac
import io
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from upfield.common.errors import InputError
from upfield.common.files import atomic_path

LEAST_KEY_BYTES = 16
WILD = "{*?"
# The bytes of a file name need not be valid UTF-8.
FILE_NAMES: Any = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True)
class Pseudonyms:
    """A key that turns names into pseudonyms."""

    key: bytes = field(repr=False)
    """The secret key."""
    names: Path | None = None
    """The CSV file that lists the name behind each pseudonym."""

    def of(self, cohort: str, name: str) -> str:
        """Return a subject's pseudonym."""
        return f"p{self._digest(f'{cohort}/{name}')[:16]}"

    def seal(self, text: str) -> str:
        """Return a keyed hash of `text`, which reveals only whether two texts are equal."""
        return f"hidden:{self._digest(text)[:16]}"

    def _digest(self, text: str) -> str:
        return hmac.new(self.key, text.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()


def open_key(path: Path) -> Pseudonyms:
    """Read the key. If the file does not exist, create it with a random key, readable by its owner only.

    Raises:
        InputError: the key is too short to be a secret.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new_file = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        _write_private(new_file, secrets.token_hex(32) + "\n")
        _put_first(new_file, path)
    key = path.read_bytes().strip()
    if len(key) < LEAST_KEY_BYTES:
        raise InputError(
            f"{path}: expected a key of at least {LEAST_KEY_BYTES} bytes, found {len(key)}. "
            "Remove the file to create a new key."
        )
    return Pseudonyms(key, path.with_name(f"{path.name}.names.csv"))


def write_names(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Add rows to the file that lists the name behind each pseudonym. Only its owner can read it.

    Args:
        path: the CSV file; its present rows are kept.
        rows: cohort, name, pseudonym.
    """
    known = set(rows) | _read_rows(path)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("cohort", "subject", "pseudonym"), *sorted(known)])
    _write_private(path, text.getvalue())


def read_names(pseudonyms: Pseudonyms) -> set[tuple[str, str, str]]:
    """Read the list of names: (cohort, name, pseudonym) of each subject; empty if the list is missing."""
    return _read_rows(pseudonyms.names) if pseudonyms.names else set()


def _read_rows(path: Path) -> set[tuple[str, str, str]]:
    if not path.exists():
        return set()
    with path.open(newline="", **FILE_NAMES) as file:
        return {(row[0], row[1], row[2]) for row in list(csv.reader(file))[1:]}


def _put_first(new_file: Path, path: Path) -> None:
    """Rename a new file to `path`, but keep a file that another build has created there in the meantime."""
    try:
        os.link(new_file, path)
    except FileExistsError:
        pass
    except OSError:  # The file system has no hard links.
        os.replace(new_file, path)
        return
    new_file.unlink()


def _write_private(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", **FILE_NAMES) as file:
            file.write(text)


def public_cohort(tree: dict[str, Any], pseudonyms: Pseudonyms | None) -> dict[str, Any]:
    """Return a cohort's configuration for publication, with private names and folders replaced or removed.

    Args:
        tree: the configuration as plain values.
        pseudonyms: replace the names and hide the patterns. Without pseudonyms, only folders outside the configuration
            file's folder are removed from the patterns.
    """
    public = dict(tree)
    for name in ("low", "high", "labels"):
        if pattern := tree[name]:
            public[name] = pseudonyms.seal(pattern) if pseudonyms else _without_folders(pattern)
    if pseudonyms:
        public["split"] = {
            split: sorted(pseudonyms.of(tree["name"], name) for name in wanted) if isinstance(wanted, list) else wanted
            for split, wanted in tree["split"].items()
        }
    return public


def _without_folders(pattern: str) -> str:
    """Replace private leading folders, which lie outside the configuration file's folder, by `...` in a pattern."""
    path = PurePosixPath(pattern)
    if not path.is_absolute() and ".." not in path.parts:
        return pattern
    first = next(number for number, part in enumerate(path.parts) if any(sign in part for sign in WILD))
    return PurePosixPath("...", *path.parts[first:]).as_posix()
