"""The lines that a run prints about its steps and validations. `metrics.jsonl` holds all figures."""

from collections.abc import Iterator, Mapping
from typing import Any

from upfield.common.progress import describe_duration
from upfield.distributed.logs.pace import Pace, RunLength
from upfield.model.baseline import describe_gain

LEAST_PLAIN = 0.01
DAY_S = 86400.0
# A smaller share of the time for validation is not worth mentioning, and a larger one can be avoided.
SMALL_SHARE, LARGE_SHARE = 0.05, 0.5
FEW_SLICES = 100


def expectation(length: RunLength, pace: Pace, step: int, on_cpu: bool) -> Iterator[str]:
    """Yield lines that say how long the run takes, and what to do if that is very long.

    Args:
        length: work of the whole run.
        pace: pace of the first steps of this job.
        step: number of steps done.
        on_cpu: whether the run trains on a CPU.
    """
    left_s, validations_s = pace.left_s(step) or 0.0, pace.validations_left_s(step)
    share = validations_s / left_s if left_s else 0.0
    including = f", of which validation takes {describe_duration(validations_s)}" if share > SMALL_SHARE else ""
    yield (
        f"{length.total_steps - step} steps at {pace.slices_per_s:.3g} slices/s: expect about "
        f"{describe_duration(left_s)}{including}"
    )
    if share > LARGE_SHARE and length.validation_slices > FEW_SLICES:
        yield f"--run.validation_slices {FEW_SLICES} shortens the validations during training"
    if length.max_minutes is not None and length.max_minutes * 60 < left_s:
        last = step + int(length.max_minutes * 60 / (left_s / (length.total_steps - step)))
        limit = describe_duration(length.max_minutes * 60)
        yield f"this job stops after {limit} (run.max_minutes), at about step {last} of {length.total_steps}"
    elif on_cpu and left_s > DAY_S:
        remedy = "limit the run with --run.max_minutes"
        if length.preset != "tiny":
            remedy = "train a smaller network with --model.preset tiny"
        yield f"that is more than a day on a CPU: {remedy}, or use a GPU"


def training_line(step: int, total_steps: int, figures: Mapping[str, Any], left_s: float | None) -> str:
    """Return the line about the steps since the last line: loss, learning rate, slices per second, and time left.

    Args:
        step: number of steps done.
        total_steps: number of steps in the whole run.
        figures: `loss`, `lr` and `slices_per_s`.
        left_s: expected rest of the job in seconds; None if it is not known yet.
    """
    parts = [f"step {step}/{total_steps}", f"loss {figures['loss']:z.4f}" if "loss" in figures else "no loss"]
    parts += [f"lr {short_number(figures['lr'])}", f"{figures['slices_per_s']:.3g} slices/s"]
    if left_s is not None and step < total_steps:
        parts.append(f"{describe_duration(left_s)} left")
    return "  ".join(parts)


def validation_line(event: str, step: int, figures: Mapping[str, Any], is_best: bool) -> str:
    """Return the line about a validation: PSNR and its difference from cubic interpolation.

    Args:
        event: `validation`, or `best` if the best model was measured on the whole validation split.
        step: number of steps done, or step of the best model.
        figures: figures of the validation.
        is_best: whether the model is the best so far.
    """
    gain = describe_gain(figures)
    psnr = f"PSNR {figures['psnr_slice']:z.2f} dB{f', {gain}' if gain else ''}"
    if event == "best":
        return f"step {step}  best model on all {figures['slices']} slices: {psnr}"
    return f"step {step}  validation: {psnr}{' (best so far)' if is_best else ''}"


def setting(value: object) -> str:
    """Return a value of a configuration as a person would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, float):
        return short_number(value)
    return f"[{', '.join(map(setting, value))}]" if isinstance(value, list | tuple) else str(value)


def short_number(value: float) -> str:
    """Return a number in its shortest form: `2e-4`, `0.999`, `4`."""
    text = f"{value:.6g}" if abs(value) >= LEAST_PLAIN or not value else f"{value:.6e}"
    mantissa, letter, exponent = text.partition("e")
    if not letter:
        return text
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"
