"""The checks of the acceptance run, in their order."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

TOTAL_S = {"cuda": 420.0, "cpu": 290.0}
# A check may take longer than planned, because its plan was made before the first card was seen.
SLACK = 1.6
CPU_LIMIT_S = 150.0


@dataclass(frozen=True)
class Check:
    """One check: a module with a function `run`."""

    number: int
    title: str
    module: str
    planned_s: float
    """Seconds that the check should take on an H100, including the start of its process."""

    def limit_s(self, device: str) -> float:
        """Return the time after which the check is stopped, on `cuda` or `cpu`."""
        return SLACK * self.planned_s if device == "cuda" else CPU_LIMIT_S


CHECKS = tuple(
    Check(number, title, f"acceptance.checks.{module}", planned_s)
    for number, title, module, planned_s in (
        (1, "machine", "machine", 8),
        (2, "correctness", "correctness", 35),
        (3, "training", "training_run", 30),
        (4, "repeating", "repeating", 30),
        (5, "eager step", "eager_step", 45),
        (6, "compiled step", "compiled_step", 110),
        (7, "microbenchmarks", "microbenchmarks", 35),
        (8, "memory", "memory", 30),
        (9, "overflow", "overflow", 15),
        (10, "one rank", "one_rank", 45),
        (11, "two ranks", "two_ranks", 40),
        (12, "inference", "inference", 35),
    )
)


def choose_checks(checks: Sequence[Check], numbers: str | None) -> list[Check]:
    """Return the checks with these numbers, in their order, or all checks.

    Args:
        checks: all checks.
        numbers: numbers separated by commas; None chooses all.

    Raises:
        SystemExit: a number is not that of a check.
    """
    if numbers is None:
        return list(checks)
    known = {str(check.number): check for check in checks}
    wanted = [number.strip() for number in numbers.split(",")]
    if unknown := [number for number in wanted if number not in known]:
        sys.exit(f"--only: expected numbers from {', '.join(known)}, separated by commas, found {unknown[0]!r}.")
    return [check for number, check in known.items() if number in wanted]
