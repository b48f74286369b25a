"""What upfield does about a variable, file or process that libraries read beside the configuration.

A run is described by its `config.yaml`. So a variable that changes what is computed is removed (`REMOVED`), has no
effect because upfield gives the library its value (`OVERRIDDEN`), or is refused (`REFUSED`). A variable that decides
only where and how fast something runs is left alone (`ALLOWED`). If it changes the rounding of sums, as another
processor would, its value is recorded in the run (`RECORDED`).
"""

from dataclasses import dataclass
from enum import StrEnum


class Treatment(StrEnum):
    """What upfield does about a variable, file or process."""

    REMOVED = "removed before a library reads it"
    OVERRIDDEN = "without effect, because upfield sets the value itself"
    REFUSED = "refused"
    ALLOWED = "the user's choice"
    RECORDED = "the user's choice, recorded in the run's environment.yaml"


@dataclass(frozen=True)
class Influence:
    """Variables, files or processes that have the same effect."""

    names: str
    """Names of variables, separated by spaces, where `*` stands for any characters; or a file or process in words."""
    readers: str
    """Who reads them."""
    changes: str
    """What they may change."""
    treatment: Treatment
    """What upfield does."""
    verbs: str = ""
    """The commands that they concern; empty for all."""
    usual: str = ""
    """Values that change nothing and are not reported, in lower case and separated by spaces; `*` reports no value."""
    instead: str = ""
    """What the user can do instead."""
    is_variable: bool = True
    """False for files and processes."""
    belongs_to_worker: bool = False
    """Whether Ray sets the variable in the workers that it starts."""


REMOVED, OVERRIDDEN, REFUSED, ALLOWED, RECORDED = Treatment
ANY = "*"
