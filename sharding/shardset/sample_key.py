"""Identifiers: splits, pairs of volumes, and the keys of samples in a tar, `cohort-subject-kind-variant-x090`."""

import re
from dataclasses import dataclass
from typing import Literal

from upfield.common.errors import ShardSetError

SPLITS = ("train", "val", "test")
Split = Literal["train", "val", "test"]
# The subject id may contain hyphens and even the name of a kind; the cohort name may not contain hyphens.
PARTS = re.compile(r"(?P<cohort>[^-]+)-(?P<subject>.+)-(?P<kind>real|synthetic)-(?P<variant>\d+)-x(?P<x>\d{3,})")
# Keys are the names of tar members. They have no dot, because WebDataset splits names at the first dot, and no space,
# because the index is split at spaces.
NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, order=True)
class SampleKey:
    """The parts of a sample's key. Sorting puts real pairs before synthetic ones and slices in order."""

    cohort: str
    """Cohort name, without hyphens."""
    subject: str
    """Subject id, as written in keys."""
    kind: str
    """`real` or `synthetic`."""
    variant: int
    """Number of the synthetic variant; 0 for real."""
    x: int
    """Number of the sagittal slice."""

    @classmethod
    def parse(cls, text: str) -> "SampleKey":
        """Parse a key.

        Raises:
            ShardSetError: this is not a key that `upfield shard` writes.
        """
        if match := PARTS.fullmatch(text):
            cohort, subject, kind, variant, x = match.groups()
            key = cls(cohort, subject, kind, int(variant), int(x))
            if str(key) == text:
                return key
        raise ShardSetError(
            f"expected a key like cohort-subject-kind-variant-x090, found {text!r}. Build the set again."
        )

    def __str__(self) -> str:
        """Return the key as text."""
        return f"{self.cohort}-{self.subject}-{self.kind}-{self.variant}-x{self.x:03d}"


@dataclass(frozen=True)
class Unit:
    """One low/high pair of volumes, identified by everything in a sample key except the slice."""

    cohort: str
    """Cohort name."""
    subject: str
    """Subject id."""
    kind: Literal["real", "synthetic"]
    """Whether its low field was scanned or made from the high field."""
    variant: int
    """Number of the synthetic variant; 0 for real."""

    @property
    def volume_name(self) -> str:
        """Name of its low-field volume among the volumes of its subject: `low`, `low-synthetic-0`, ..."""
        return "low" if self.kind == "real" else f"low-synthetic-{self.variant}"

    def key(self, x: int) -> str:
        """Return the sample key of sagittal slice `x`."""
        return str(SampleKey(self.cohort, key_part(self.subject), self.kind, self.variant, x))


def key_part(subject: str) -> str:
    """Return a subject id, limited to the characters that sample keys and file names may contain."""
    return NOT_IN_KEYS.sub("_", subject)
