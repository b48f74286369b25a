"""The pictures of a report: training curves, example slices, and the distribution of a metric.

Curves are mid-grey on a transparent background, so that one picture is readable on white and on black pages.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.drawing import INK, PAPER, Page, blank_page, png_bytes, shorten
from upfield.evaluation.measurements import ExampleSlice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLEAR, GREY = "none", "#7d838c"
MODEL, CUBIC = "#2f86d6", "#d9822b"  # the same colours in every picture
SERIES = (CUBIC, MODEL, "#3fa66a", "#c75d7e")
CURVES_IN, CURVES_DPI = (9.0, 3.4), 160
SLICES_DPI = 120
COLUMN_TITLES = ("low field", "cubic interpolation", "restored", "high field", "error, cubic", "error, restored")
NUM_IMAGES = 4  # the remaining columns show errors
ERROR_COLOURS = "inferno"
IMAGE_IN, GAP_IN, HEAD_IN, CAPTION_IN, KEY_IN = 2.0, 0.06, 0.42, 0.3, 0.32
BAR_IN, BAR_BELOW_IN = 0.14, 0.42


def curves_png(metrics: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the training loss, and the validation PSNR of the model and of cubic interpolation, over steps.

    Args:
        metrics: lines of a run's `metrics.jsonl`.

    Returns:
        A PNG with a transparent background.

    Raises:
        InputError: matplotlib is not installed.
    """
    page = blank_page(*CURVES_IN, CLEAR, CURVES_DPI)
    width_in, height_in = CURVES_IN[0] / 2 - 0.85, CURVES_IN[1] - 1.0
    left = page.axes(0.7, 0.4, width_in, height_in)
    right = page.axes(CURVES_IN[0] / 2 + 0.65, 0.4, width_in, height_in)
    _draw_loss(left, [line for line in metrics if line["event"] == "train"])
    _draw_validation(right, [line for line in metrics if line["event"] == "validation"])
    # This import follows blank_page, which raises an error with the remedy if matplotlib is not installed.
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
    axes.yaxis.set_major_formatter("{x:zg}")


def _draw_validation(axes: "Axes", lines: list[Mapping[str, Any]]) -> None:
    if not lines:
        return
    steps = [line["step"] for line in lines]
    psnr = np.array([line["psnr_slice"] for line in lines], dtype=np.float64)
    cubic = float(lines[-1]["cubic_psnr_slice"])
    axes.plot(steps, psnr, color=MODEL, marker=_dot(lines), label="model")
    axes.axhline(cubic, color=CUBIC, linestyle="--", label=f"cubic interpolation, {cubic:z.2f}")
    if np.isfinite(psnr).any():
        best = int(np.nanargmax(np.where(np.isfinite(psnr), psnr, np.nan)))
        axes.plot(steps[best], psnr[best], color=MODEL, marker="o", linestyle="", label=f"best, {psnr[best]:z.2f}")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=9, labelcolor=GREY)


def _dot(lines: list[Mapping[str, Any]]) -> str:
    """Return a marker if there are too few points for a line."""
    return "." if len(lines) < 20 else ""


def _plain(axes: "Axes", title: str) -> None:
    axes.set_facecolor(CLEAR)
    axes.set_title(title, color=GREY, fontsize=11, loc="left", parse_math=False)
    axes.tick_params(which="both", colors=GREY, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def distribution_png(values: Mapping[str, NDArray[np.floating[Any]]], label: str = "PSNR per slice (dB)") -> bytes:
    """Draw the distribution of a metric over slices: one histogram per name, with its median.

    Args:
        values: name -> `(N,)`, in drawing order, with cubic interpolation first. Values that are not finite are left
            out and counted in the legend.
        label: label of the horizontal axis.

    Returns:
        A PNG with a transparent background.

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
    median = f"median {np.median(finite):z.2f}" if len(finite) else "no slices"
    return f"{name}, {median}" + (f" ({num_left_out} not finite, left out)" if num_left_out else "")


def example_slices_png(examples: Sequence[ExampleSlice]) -> bytes:
    """Draw one row per slice: low field, interpolated, restored, high field, and the two absolute errors.

    Args:
        examples: the slices, at least one.

    Returns:
        A PNG with a black background. All errors share one colour scale, which is drawn below them.

    Raises:
        InputError: matplotlib is not installed.
    """
    assert examples
    errors = [[np.abs(image - t.high) for image in (t.cubic, t.restored)] for t in examples]
    # The limit is not the maximum, because a few voxels at misplaced edges would leave everything else black.
    most = max(float(np.percentile(np.concatenate([e.ravel() for row in errors for e in row]), 99.5)), 1e-6)
    image_in = IMAGE_IN * examples[0].high.shape[1] / examples[0].high.shape[0]
    row_in = KEY_IN + image_in + CAPTION_IN
    width_in = len(COLUMN_TITLES) * (IMAGE_IN + GAP_IN) + GAP_IN
    page = blank_page(width_in, HEAD_IN + len(examples) * row_in + BAR_IN + BAR_BELOW_IN, PAPER, SLICES_DPI)
    for column, head in enumerate(COLUMN_TITLES):
        page.text(_left(column) + IMAGE_IN / 2, 0.14, head, 11, ha="center", weight="bold")
    for row, (example, pair) in enumerate(zip(examples, errors, strict=True)):
        _draw_example(page, example, HEAD_IN + row * row_in, image_in)
        for column, error in enumerate(pair, start=NUM_IMAGES):
            box_in = (_left(column), HEAD_IN + row * row_in + KEY_IN, IMAGE_IN, image_in)
            page.image(box_in, error, cmap=ERROR_COLOURS, vmax=most)
    bar_in = (_left(NUM_IMAGES), HEAD_IN + len(examples) * row_in, 2 * IMAGE_IN + GAP_IN, BAR_IN)
    _draw_scale(page, bar_in, ERROR_COLOURS, (0, most))
    return png_bytes(page.figure)


def _left(column: int) -> float:
    return GAP_IN + column * (IMAGE_IN + GAP_IN)


def _draw_example(page: Page, example: ExampleSlice, top_in: float, image_in: float) -> None:
    page.text(GAP_IN, top_in + 0.07, shorten(example.key, len(COLUMN_TITLES) * IMAGE_IN, 10), 10)
    for column, image in enumerate((example.scan, example.cubic, example.restored, example.high)):
        page.image((_left(column), top_in + KEY_IN, IMAGE_IN, image_in), image)
    for column, prefix in enumerate(("cubic_", ""), start=1):
        caption = _quality(example.values, prefix)
        page.text(_left(column) + IMAGE_IN / 2, top_in + KEY_IN + image_in + 0.06, caption, 10, ha="center")


def _quality(values: Mapping[str, float], prefix: str) -> str:
    names = ((f"{prefix}psnr_slice", "{:z.2f} dB"), (f"{prefix}ssim_slice", "SSIM {:z.3f}"))
    return "   ".join(form.format(values[name]) for name, form in names if name in values)


def _draw_scale(page: Page, box_in: tuple[float, float, float, float], colours: str, ends: tuple[float, float]) -> None:
    axes = page.axes(*box_in)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto", extent=(*ends, 0, 1))
    axes.set_yticks([])
    # Bars lie side by side, so a label at the end of one bar would overlap the first label of the next bar.
    axes.set_xticks([tick for tick in axes.get_xticks() if ends[0] <= tick <= ends[0] + 0.92 * (ends[1] - ends[0])])
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)


def trust_maps_png(images: Mapping[str, NDArray[np.floating[Any]]], limits: Mapping[str, float]) -> bytes:
    """Draw images of one slice in a row: grey images, and coloured maps with their colour scales below.

    Args:
        images: title -> `(Y, Z)`. Images that have a limit are drawn as maps. The others are grey images in [0, 1].
        limits: title -> upper end of a map's colour scale. The lower end is 0, or minus the limit if the map has
            negative values.

    Returns:
        A PNG on black.

    Raises:
        InputError: matplotlib is not installed.
    """
    height, width = next(iter(images.values())).shape[::-1]
    image_in = IMAGE_IN * height / width
    page = blank_page(len(images) * (IMAGE_IN + GAP_IN) + GAP_IN, HEAD_IN + image_in + 0.6, PAPER, SLICES_DPI)
    for column, (title, image) in enumerate(images.items()):
        page.text(_left(column) + IMAGE_IN / 2, 0.14, title, 11, ha="center", weight="bold")
        box_in = (_left(column), HEAD_IN, IMAGE_IN, image_in)
        if title not in limits:
            page.image(box_in, image)
            continue
        limit, signed = limits[title], bool((image < 0).any())
        colours, low = ("RdBu_r", -limit) if signed else (ERROR_COLOURS, 0.0)
        page.image(box_in, image, cmap=colours, vmin=low, vmax=limit)
        _draw_scale(page, (_left(column), HEAD_IN + image_in + 0.1, IMAGE_IN, BAR_IN), colours, (low, limit))
    return png_bytes(page.figure)


def planes_png(volumes: Mapping[str, NDArray[np.floating[Any]]], spacing_mm: NDArray[np.float64]) -> bytes:
    """Draw the three planes through the centre of each volume, one column per volume.

    Args:
        volumes: title -> `(X, Y, Z)` in [0, 1], in RAS+ order. Volumes after the first NUM_IMAGES are drawn as errors.
        spacing_mm: `(3,)`, voxel spacing of all volumes.

    Returns:
        A PNG on black.

    Raises:
        InputError: matplotlib is not installed.
    """
    shape = next(iter(volumes.values())).shape
    x_mm, y_mm, z_mm = (float(mm) for mm in np.array(shape) * spacing_mm)
    at_x, at_y, at_z = (size // 2 for size in shape)
    planes = {
        "sagittal": (np.s_[at_x], y_mm, z_mm),
        "coronal": (np.s_[:, at_y], x_mm, z_mm),
        "axial": (np.s_[:, :, at_z], x_mm, y_mm),
    }
    per_mm = IMAGE_IN / max(x_mm, y_mm)
    height_in = HEAD_IN + sum(up_mm * per_mm + GAP_IN for _, _, up_mm in planes.values())
    page = blank_page(len(volumes) * (IMAGE_IN + GAP_IN) + GAP_IN, height_in, PAPER, SLICES_DPI)
    for column, (title, volume) in enumerate(volumes.items()):
        page.text(_left(column) + IMAGE_IN / 2, 0.14, title, 11, ha="center", weight="bold")
        options = {"cmap": ERROR_COLOURS} if column >= NUM_IMAGES else {}
        top_in = HEAD_IN
        for plane, (where, across_mm, up_mm) in planes.items():
            width_in, tall_in = across_mm * per_mm, up_mm * per_mm
            box_in = (_left(column) + (IMAGE_IN - width_in) / 2, top_in, width_in, tall_in)
            page.image(box_in, volume[where], plane, **options)
            top_in += tall_in + GAP_IN
    return png_bytes(page.figure)


def bands_png(bands: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw the energy that contradicts a scan, as a share of the scan's energy, per band of spatial frequency.

    Args:
        bands: method -> band -> share of energy.

    Returns:
        A PNG with a transparent background.

    Raises:
        InputError: matplotlib is not installed.
    """
    page = blank_page(*CURVES_IN, CLEAR, CURVES_DPI)
    axes = page.axes(0.9, 0.4, CURVES_IN[0] - 1.1, CURVES_IN[1] - 1.0)
    names = list(next(iter(bands.values())))
    for number, (method, shares) in enumerate(bands.items()):
        # A logarithmic axis cannot show zero.
        heights = [max(100 * shares[name], 1e-6) for name in names]
        axes.plot(range(len(names)), heights, color=SERIES[number % len(SERIES)], marker="o", label=method)
    _plain(axes, "energy that contradicts the scan, % of the scan's energy in the band")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:zg}")
    axes.set_xticks(range(len(names)), names)
    axes.margins(x=0.1)
    axes.grid(color=GREY, alpha=0.2)
    axes.set_xlabel("spatial frequency, relative to the limit of the low-field grid", color=GREY, fontsize=10)
    axes.legend(frameon=False, fontsize=9, labelcolor=GREY)
    return png_bytes(page.figure)
