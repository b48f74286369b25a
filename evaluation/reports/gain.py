"""The gain over cubic interpolation in words, which a report states first."""

from collections.abc import Mapping
from typing import Any

from upfield.common import html_page
from upfield.evaluation.measurements import CUBIC, MODEL
from upfield.evaluation.paired_differences import CONFIDENCE
from upfield.evaluation.reports.cells import number_cell

PSNR, SSIM = "psnr_slice", "ssim_slice"


def gain_section(tree: Mapping[str, Any]) -> html_page.Section:
    """Build the first lines of a report.

    Args:
        tree: the contents of metrics.json, of which the statistics of both methods and `differences` are read.
    """
    psnr, ssim = ([number_cell(tree[m][name]["mean"], 2) for m in (MODEL, CUBIC)] for name in (PSNR, SSIM))
    means = (
        f"PSNR per slice is {psnr[0]} dB instead of {psnr[1]} dB, and SSIM per slice is {ssim[0]} instead of {ssim[1]}."
    )
    difference = tree["differences"][f"{MODEL} - {CUBIC}"].get(PSNR)
    if difference is None:
        return html_page.lead("The gain over cubic interpolation is undefined.", "No slice has a finite PSNR for both.")
    return html_page.lead(gain_text(difference), f"{means} {interval_text(difference)}")


def gain_text(difference: Mapping[str, Any]) -> str:
    """Say by how much the model is better or worse than cubic interpolation.

    Args:
        difference: `mean` of the PSNR in dB.
    """
    gain = number_cell(abs(difference["mean"]), 2)
    if float(gain) == 0:
        return "The model has the same PSNR as cubic interpolation."
    if difference["mean"] > 0:
        return f"The model gains {gain} dB of PSNR over cubic interpolation."
    return f"The model is worse than cubic interpolation by {gain} dB of PSNR."


def interval_text(difference: Mapping[str, Any]) -> str:
    """Say how certain the gain is.

    Args:
        difference: `low` and `high` in dB, which are None for a single subject, and `subjects`.
    """
    if difference["low"] is None:
        return "The split has one subject, so the gain has no confidence interval."
    low, high = (number_cell(difference[end], 2, "+") for end in ("low", "high"))
    doubt = " It includes 0." if difference["low"] <= 0 <= difference["high"] else ""
    subjects = f"{difference['subjects']} subjects"
    return f"The {CONFIDENCE:.0%} interval of the gain over {subjects} is {low} to {high} dB.{doubt}"
