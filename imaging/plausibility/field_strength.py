"""Compare the field strength that a scanner stated with what a model for low-field scans is made for."""

from collections.abc import Mapping
from typing import Any

# A field above the first value, in T, is not low. No scanner for people reaches the second one, so a larger value, such
# as 64, is probably in mT.
MAX_LOW_T, MAX_T = 0.5, 20.0


def strength_doubt(sidecar: Any) -> str | None:
    """Return a doubt if the JSON file beside a scan to be enhanced states a high field, otherwise None.

    Args:
        sidecar: content of the file, with BIDS's keys, or anything else, which says nothing.
    """
    strength_t = sidecar.get("MagneticFieldStrength") if isinstance(sidecar, Mapping) else None
    if not isinstance(strength_t, int | float) or not MAX_LOW_T < strength_t < MAX_T:
        return None
    return (
        f"the JSON file beside it states a field of {strength_t:g} T, but the model was trained on low-field scans, so "
        "the result may be worse than the scan"
    )
