"""How a model compares with cubic interpolation on its validation slices. Runs and model files record the figures."""

import math
from collections.abc import Mapping
from typing import Any

# A smaller difference would be printed as 0.00 dB.
LEAST_DIFFERENCE_DB = 0.005


def gain_over_cubic(figures: Mapping[str, Any]) -> float | None:
    """Return by how many dB of PSNR a model is better than cubic interpolation; negative if it is worse.

    Args:
        figures: figures of a validation, with `psnr_slice` and `cubic_psnr_slice` in dB.

    Returns:
        None if a figure is missing or not finite, as in model files of earlier versions.
    """
    model, cubic = (float(figures.get(name) or math.nan) for name in ("psnr_slice", "cubic_psnr_slice"))
    return model - cubic if math.isfinite(model - cubic) else None


def describe_gain(figures: Mapping[str, Any]) -> str:
    """Return the difference from cubic interpolation in words, or an empty text if it is not known."""
    gain = gain_over_cubic(figures)
    return "" if gain is None else gain_in_words(gain)


def gain_in_words(gain: float) -> str:
    """Return a gain over cubic interpolation, in dB of PSNR, in words: `0.35 dB above cubic interpolation`."""
    if abs(gain) < LEAST_DIFFERENCE_DB:
        return "as good as cubic interpolation"
    return f"{abs(gain):.2f} dB {'above' if gain > 0 else 'below'} cubic interpolation"


def warn_if_below_cubic(name: str, step: int | None, figures: Mapping[str, Any]) -> str | None:
    """Return a warning if a model is worse than cubic interpolation on its validation slices, and None otherwise.

    Args:
        name: the run or the model file, as the user named it.
        step: step of the run at which the model was saved; None if it is not known.
        figures: figures of its validation, as for `gain_over_cubic`.
    """
    gain = gain_over_cubic(figures)
    if gain is None or gain > -LEAST_DIFFERENCE_DB:
        return None
    of_step = "" if step is None else f" (step {step})"
    return (
        f"warning: {name}: the best model{of_step} is worse than cubic interpolation: {figures['psnr_slice']:.2f} dB "
        f"and {figures['cubic_psnr_slice']:.2f} dB on the validation slices. Train it longer, or use another model."
    )
