"""Sample keys like `cohort-subject-kind-variant-x090`: the names of samples in their tar."""

import re
from dataclasses import dataclass

from upfield.common.errors import ShardSetError

# The subject id may contain hyphens and even the name of a kind; the cohort name may not contain hyphens.
PARTS = re.compile(r"(?P<cohort>[^-]+)-(?P<subject>.+)-(?P<kind>real|synthetic)-(?P<variant>\d+)-x(?P<x>\d{3,})")


@dataclass(frozen=True, order=True)
class SampleKey:
    """The parts of a sample's key. Sorted keys put real before synthetic, and follow the slices of a volume."""

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
