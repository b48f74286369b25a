"""Ranges of configurations, from which values are drawn, and shares."""

import math

Range = tuple[float, float]


def check_range(name: str, values: Range, least: float, most: float = math.inf) -> None:
    """Check that a range is ordered and within its limits.

    Args:
        name: key of the range, for the error.
        values: first and last value of the range.
        least: smallest value that it may hold.
        most: largest value that it may hold.

    Raises:
        ValueError: the range is not ordered, or reaches beyond a limit.
    """
    first, last = values
    if first > last:
        raise ValueError(f"{name}: the first value, {first:g}, exceeds the second, {last:g}. Swap them.")
    if not least <= first <= last <= most:
        limits = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
        raise ValueError(f"{name}: expected two values {limits}, found [{first:g}, {last:g}]. Correct the range.")


def check_share(name: str, value: float) -> None:
    """Check that a share of a whole, such as the rate of an artefact, is between 0 and 1.

    Args:
        name: key of the share, for the error.
        value: the share.

    Raises:
        ValueError: the value is below 0 or above 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected 0..1, found {value}.")
