"""Format numbers for the cells of tables."""

from math import isfinite
from typing import Any

from upfield.evaluation.paired_differences import CONFIDENCE

DIFFERENCE_HEADER = (f"{CONFIDENCE:.0%} interval", "p")


def number_cell(value: float | None, digits: int, sign: str = "") -> str:
    """Format a number; `-` if it is undefined or infinite."""
    return "-" if value is None or not isfinite(value) else f"{value:{sign}z.{digits}f}"


def difference_cells(difference: dict[str, Any] | None, digits: int) -> list[str]:
    """Format a difference, its confidence interval and its p-value; each is `-` if undefined.

    Args:
        difference: `mean`, `low`, `high` and `p`; None if no subject has a value for both methods.
        digits: number of decimals of the difference and its interval.
    """
    if difference is None:
        return ["-"] * 3
    mean, low, high = (number_cell(difference[name], digits, "+") for name in ("mean", "low", "high"))
    interval = "-" if difference["low"] is None else f"{low} to {high}"
    return [mean, interval, number_cell(difference["p"], 3)]
