"""The pictures of a report: training curves, restored slices beside their inputs, the spread of a metric.

Curves have no background and mid-grey ink, so that one picture is readable on white and on black pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.drawing import INK, PAPER, Page, blank_page, png_bytes, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLEAR, GREY = "none", "#7d838c"
MODEL, CUBIC = "#2f86d6", "#d9822b"  # in every picture
SERIES = (CUBIC, MODEL, "#3fa66a", "#c75d7e")
CURVES_IN, CURVES_DPI = (9.0, 3.4), 160
TRIPLETS_DPI = 120
TRIPLET_HEADS = ("low field", "cubic interpolation", "restored", "high field", "error, cubic", "error, restored")
NUM_IMAGES = 4  # of them; the others are errors
IMAGE_IN, GAP_IN, HEAD_IN, CAPTION_IN, KEY_IN = 2.0, 0.06, 0.42, 0.3, 0.32
BAR_IN, BAR_BELOW_IN = 0.14, 0.42


@dataclass(frozen=True)
class Triplet:
    """One slice before and after, with its target; all `(Y, Z)` in [0, 1], Y anterior, Z superior."""

    key: str
    """Key of the sample."""
    scan: NDArray[np.floating[Any]]
    """Low field, in blocks of its own voxels."""
    cubic: NDArray[np.floating[Any]]
    """The same, cubically interpolated."""
    restored: NDArray[np.floating[Any]]
    """What the model made of it."""
    high: NDArray[np.floating[Any]]
    """High field."""
    values: Mapping[str, float] = field(default_factory=dict)
    """`psnr_slice` (dB), `ssim_slice`, and the same with `cubic_` before; those given are written below the images."""


def curves_png(metrics: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw training loss, and validation PSNR beside cubic interpolation, over steps.

    Args:
        metrics: lines of a run's `metrics.jsonl`.

    Returns:
        A PNG without background.

    Raises:
        InputError: matplotlib is not installed.
    """
    page = blank_page(*CURVES_IN, CLEAR, CURVES_DPI)
    width_in, height_in = CURVES_IN[0] / 2 - 0.85, CURVES_IN[1] - 1.0
    left = page.axes(0.7, 0.4, width_in, height_in)
    right = page.axes(CURVES_IN[0] / 2 + 0.65, 0.4, width_in, height_in)
    _draw_loss(left, [line for line in metrics if line["event"] == "train"])
    _draw_validation(right, [line for line in metrics if line["event"] == "validation"])
    # Not at the top: only blank_page says what to do where matplotlib is missing.
    from matplotlib.ticker import MaxNLocator

    for axes, title in ((left, "training loss"), (right, "validation PSNR (dB)")):
        _plain(axes, title)
        axes.set_xlabel("step", color=GREY, fontsize=10)
        axes.set_xlim(0, 1.03 * max([1, *(line["step"] for line in metrics)]))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color=GREY, alpha=0.2)
    return png_bytes(page.figure)


def _draw_loss(axes: "Axes", lines: list[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    if not lines:
        return
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], color=MODEL, marker=_dot(lines))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_validation(axes: "Axes", lines: list[Mapping[str, Any]]) -> None:
    if not lines:
        return
    steps = [line["step"] for line in lines]
    psnr = np.array([line["psnr_slice"] for line in lines], dtype=np.float64)
    cubic = float(lines[-1]["cubic_psnr_slice"])
    axes.plot(steps, psnr, color=MODEL, marker=_dot(lines), label="model")
    axes.axhline(cubic, color=CUBIC, linestyle="--", label=f"cubic interpolation, {cubic:.2f}")
    if np.isfinite(psnr).any():
        best = int(np.nanargmax(np.where(np.isfinite(psnr), psnr, np.nan)))
        axes.plot(steps[best], psnr[best], color=MODEL, marker="o", linestyle="", label=f"best, {psnr[best]:.2f}")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=9, labelcolor=GREY)


def _dot(lines: list[Mapping[str, Any]]) -> str:
    """Mark the points where they are too few to make a line."""
    return "." if len(lines) < 20 else ""


def _plain(axes: "Axes", title: str) -> None:
    axes.set_facecolor(CLEAR)
    axes.set_title(title, color=GREY, fontsize=11, loc="left", parse_math=False)
    axes.tick_params(which="both", colors=GREY, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def distribution_png(values: Mapping[str, NDArray[np.floating[Any]]], label: str = "PSNR per slice (dB)") -> bytes:
    """Draw how a metric is spread over slices, one histogram per name with its median.

    Args:
        values: `(N,)` per name, in the order they are drawn (cubic first); those that are not finite are left out and
            counted in the legend.
        label: of the horizontal axis.

    Returns:
        A PNG without background.

    Raises:
        InputError: matplotlib is not installed.
    """
    page = blank_page(*CURVES_IN, CLEAR, CURVES_DPI)
    axes = page.axes(0.7, 0.4, CURVES_IN[0] - 0.9, CURVES_IN[1] - 1.0)
    finite = {name: np.asarray(array)[np.isfinite(array)] for name, array in values.items()}
    together = np.concatenate([*finite.values(), np.empty(0)])
    edges = np.histogram_bin_edges(together, bins=48)
    for number, (name, array) in enumerate(finite.items()):
        colour = SERIES[number % len(SERIES)]
        legend = _spread_label(name, array, len(values[name]) - len(array))
        axes.stairs(np.histogram(array, edges)[0], edges, color=colour, fill=True, alpha=0.4, label=legend)
        axes.stairs(np.histogram(array, edges)[0], edges, color=colour, linewidth=1.4)
        if len(array):
            axes.axvline(float(np.median(array)), color=colour, linestyle="--")
    _plain(axes, "slices")
    axes.set_xlabel(label, color=GREY, fontsize=10)
    axes.margins(y=0.25)
    axes.legend(frameon=False, fontsize=9, labelcolor=GREY)
    return png_bytes(page.figure)


def _spread_label(name: str, finite: NDArray[np.floating[Any]], num_left_out: int) -> str:
    median = f"median {np.median(finite):.2f}" if len(finite) else "no slices"
    return f"{name}, {median}" + (f" ({num_left_out} not finite, left out)" if num_left_out else "")


def triplets_png(triplets: Sequence[Triplet]) -> bytes:
    """Draw a row per slice: low field, interpolated, restored, high field, and the absolute error of the two between.

    Args:
        triplets: at least one.

    Returns:
        A PNG on black; all errors share one scale, which is drawn below them.

    Raises:
        InputError: matplotlib is not installed.
    """
    assert triplets
    errors = [[np.abs(image - t.high) for image in (t.cubic, t.restored)] for t in triplets]
    # A few voxels at misplaced edges would leave everything else black.
    most = max(float(np.percentile(np.concatenate([e.ravel() for row in errors for e in row]), 99.5)), 1e-6)
    image_in = IMAGE_IN * triplets[0].high.shape[1] / triplets[0].high.shape[0]
    row_in = KEY_IN + image_in + CAPTION_IN
    width_in = len(TRIPLET_HEADS) * (IMAGE_IN + GAP_IN) + GAP_IN
    page = blank_page(width_in, HEAD_IN + len(triplets) * row_in + BAR_IN + BAR_BELOW_IN, PAPER, TRIPLETS_DPI)
    for column, head in enumerate(TRIPLET_HEADS):
        page.text(_left(column) + IMAGE_IN / 2, 0.14, head, 11, ha="center", weight="bold")
    for row, (triplet, pair) in enumerate(zip(triplets, errors, strict=True)):
        _draw_triplet(page, triplet, HEAD_IN + row * row_in, image_in)
        for column, error in enumerate(pair, start=NUM_IMAGES):
            box_in = (_left(column), HEAD_IN + row * row_in + KEY_IN, IMAGE_IN, image_in)
            page.image(box_in, error, cmap="inferno", vmax=most)
    bar_in = (_left(NUM_IMAGES), HEAD_IN + len(triplets) * row_in, 2 * IMAGE_IN + GAP_IN, BAR_IN)
    _draw_scale(page, bar_in, "inferno", (0, most))
    return png_bytes(page.figure)


def _left(column: int) -> float:
    return GAP_IN + column * (IMAGE_IN + GAP_IN)


def _draw_triplet(page: Page, triplet: Triplet, top_in: float, image_in: float) -> None:
    page.text(GAP_IN, top_in + 0.07, shorten(triplet.key, len(TRIPLET_HEADS) * IMAGE_IN, 10), 10)
    for column, image in enumerate((triplet.scan, triplet.cubic, triplet.restored, triplet.high)):
        page.image((_left(column), top_in + KEY_IN, IMAGE_IN, image_in), image)
    for column, prefix in enumerate(("cubic_", ""), start=1):
        caption = _quality(triplet.values, prefix)
        page.text(_left(column) + IMAGE_IN / 2, top_in + KEY_IN + image_in + 0.06, caption, 10, ha="center")


def _quality(values: Mapping[str, float], prefix: str) -> str:
    names = ((f"{prefix}psnr_slice", "{:.2f} dB"), (f"{prefix}ssim_slice", "SSIM {:.3f}"))
    return "   ".join(form.format(values[name]) for name, form in names if name in values)


def _draw_scale(page: Page, box_in: tuple[float, float, float, float], colours: str, ends: tuple[float, float]) -> None:
    axes = page.axes(*box_in)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto", extent=(*ends, 0, 1))
    axes.set_yticks([])
    # Bars lie side by side: what stands at the end of one would run into the next one's.
    axes.set_xticks([tick for tick in axes.get_xticks() if ends[0] <= tick <= ends[0] + 0.92 * (ends[1] - ends[0])])
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)


def doubts_png(images: Mapping[str, NDArray[np.floating[Any]]], limits: Mapping[str, float]) -> bytes:
    """Draw one slice's images in a row: grey ones, and maps of what is doubtful in colours with their scale below.

    Args:
        images: title -> `(Y, Z)`; those with a limit are maps, the others images in [0, 1].
        limits: title -> where a map's colours end; they start there too, below zero, where a map has values below zero.

    Returns:
        A PNG on black.

    Raises:
        InputError: matplotlib is not installed.
    """
    height, width = next(iter(images.values())).shape[::-1]
    image_in = IMAGE_IN * height / width
    page = blank_page(len(images) * (IMAGE_IN + GAP_IN) + GAP_IN, HEAD_IN + image_in + 0.6, PAPER, TRIPLETS_DPI)
    for column, (title, image) in enumerate(images.items()):
        page.text(_left(column) + IMAGE_IN / 2, 0.14, title, 11, ha="center", weight="bold")
        box_in = (_left(column), HEAD_IN, IMAGE_IN, image_in)
        if title not in limits:
            page.image(box_in, image)
            continue
        limit, signed = limits[title], bool((image < 0).any())
        colours, low = ("RdBu_r", -limit) if signed else ("inferno", 0.0)
        page.image(box_in, image, cmap=colours, vmin=low, vmax=limit)
        _draw_scale(page, (_left(column), HEAD_IN + image_in + 0.1, IMAGE_IN, BAR_IN), colours, (low, limit))
    return png_bytes(page.figure)


def bands_png(bands: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw how much of a scan's energy is contradicted, per band of spatial frequency.

    Args:
        bands: method -> band -> energy share.

    Returns:
        A PNG without background.

    Raises:
        InputError: matplotlib is not installed.
    """
    page = blank_page(*CURVES_IN, CLEAR, CURVES_DPI)
    axes = page.axes(0.9, 0.4, CURVES_IN[0] - 1.1, CURVES_IN[1] - 1.0)
    names = list(next(iter(bands.values())))
    for number, (method, shares) in enumerate(bands.items()):
        # A share of nothing has no place on a logarithmic axis.
        heights = [max(100 * shares[name], 1e-6) for name in names]
        axes.plot(range(len(names)), heights, color=SERIES[number % len(SERIES)], marker="o", label=method)
    _plain(axes, "energy that contradicts the scan, % of the scan's in the band")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(names)), names)
    axes.margins(x=0.1)
    axes.grid(color=GREY, alpha=0.2)
    axes.set_xlabel("spatial frequency, in units of what the low-field grid can hold", color=GREY, fontsize=10)
    axes.legend(frameon=False, fontsize=9, labelcolor=GREY)
    return png_bytes(page.figure)
