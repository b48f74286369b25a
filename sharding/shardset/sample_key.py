"""Sample keys, `cohort-subject-kind-variant-x090`: the name of a sample in its tar."""

import re
from dataclasses import dataclass

from upfield.common.errors import ShardSetError

# From the right: a subject's id may hold hyphens and even the name of a kind, a cohort's may not.
PARTS = re.compile(r"(?P<cohort>[^-]+)-(?P<subject>.+)-(?P<kind>real|synthetic)-(?P<variant>\d+)-x(?P<x>\d{3,})")


@dataclass(frozen=True, order=True)
class SampleKey:
    """What a sample's key says; sorted, slices follow each other in their volume, and real comes before synthetic."""

    cohort: str
    """Cohort name, without hyphens."""
    subject: str
    """Subject id, as keys spell it."""
    kind: str
    """`real` or `synthetic`."""
    variant: int
    """Number of the synthetic variant; 0 for real."""
    x: int
    """Sagittal slice."""

    @classmethod
    def parse(cls, text: str) -> "SampleKey":
        """Take a key apart.

        Raises:
            ShardSetError: not a key that `upfield shard` writes.
        """
        if match := PARTS.fullmatch(text):
            cohort, subject, kind, variant, x = match.groups()
            key = cls(cohort, subject, kind, int(variant), int(x))
            if str(key) == text:
                return key
        raise ShardSetError(f"expected a key like cohort-subject-kind-variant-x090, found {text!r}; rebuild the set")

    def __str__(self) -> str:
        """Spell the key."""
        return f"{self.cohort}-{self.subject}-{self.kind}-{self.variant}-x{self.x:03d}"
