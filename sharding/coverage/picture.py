"""Draw scans beside synthetic volumes, and for each measure where the scans lie among the synthetic volumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from upfield.common.drawing import COLOURS, FAINT, INK, PAPER, Page, blank_page, png_bytes, shorten
from upfield.sharding.coverage.comparison import RANGE, Distribution, ScanCoverage
from upfield.sharding.coverage.measures import MEASURES, Measure
from upfield.sharding.coverage.volumes import Scan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGE_IN, IMAGES, MARGIN_IN, GAP_IN, CAPTION_IN = 1.5, 8, 0.2, 0.1, 0.22
PANELS, PANEL_GAP_IN, ROW_IN, TITLE_IN, TICKS_IN = 4, 0.3, 0.26, 0.26, 0.36
WIDTH_IN = 2 * MARGIN_IN + IMAGES * (IMAGE_IN + GAP_IN) - GAP_IN
MARKERS = "ovsD^P*X"


@dataclass(frozen=True)
class AuditedScan:
    """A scan and how each recipe covers it."""

    scan: Scan
    """The scan; of its voxels, only the middle sagittal slice is kept: `(1, Y, Z)`."""
    coverages: list[ScanCoverage]
    """One for each recipe."""


@dataclass(frozen=True)
class Thumbnail:
    """The middle sagittal slice of a synthetic volume."""

    caption: str
    """Subject, variant and recipe."""
    pixels: NDArray[np.float32]
    """`(Y, Z)` in [0, 1]."""


def draw_picture(
    audited: Sequence[AuditedScan], distributions: Sequence[Distribution], thumbnails: Sequence[Thumbnail]
) -> bytes:
    """Draw the report.

    Args:
        audited: the scans.
        distributions: the synthetic volumes.
        thumbnails: slices of some of them, at least one.

    Returns:
        A PNG file.
    """
    shown = [Thumbnail(item.scan.name, item.scan.low[0]) for item in audited[: IMAGES // 2]]
    images = [*shown, *thumbnails[: IMAGES - len(shown)]]
    image_in = IMAGE_IN * images[0].pixels.shape[1] / images[0].pixels.shape[0]
    rows_in = ROW_IN * len(distributions)
    panel_in = TITLE_IN + rows_in + TICKS_IN
    bands = -(-len(MEASURES) // PANELS)
    key_in = CAPTION_IN * max(len(audited), len(distributions)) + 0.2
    top_in = MARGIN_IN + image_in + CAPTION_IN + 0.1
    page = blank_page(WIDTH_IN, top_in + key_in + bands * panel_in + MARGIN_IN, PAPER)
    for number, image in enumerate(images):
        left_in = MARGIN_IN + number * (IMAGE_IN + GAP_IN)
        page.image((left_in, MARGIN_IN, IMAGE_IN, image_in), image.pixels)
        colour = INK if number < len(shown) else FAINT
        page.text(left_in, MARGIN_IN + image_in + 0.04, shorten(image.caption, IMAGE_IN, 7), 7, color=colour)
    _draw_key(page, audited, distributions, top_in)
    width_in = (WIDTH_IN - 2 * MARGIN_IN - (PANELS - 1) * PANEL_GAP_IN) / PANELS
    for number, measure in enumerate(MEASURES):
        left_in = MARGIN_IN + number % PANELS * (width_in + PANEL_GAP_IN)
        panel_top_in = top_in + key_in + number // PANELS * panel_in
        page.text(left_in, panel_top_in + 0.04, measure.title, 9)
        axes = page.axes(left_in, panel_top_in + TITLE_IN, width_in, rows_in)
        _draw_measure(axes, measure, audited, distributions)
    return png_bytes(page.figure)


def _draw_key(page: Page, audited: Sequence[AuditedScan], distributions: Sequence[Distribution], top_in: float) -> None:
    """Write which row is which distribution, and which marker is which scan."""
    for number, each in enumerate(distributions):
        text = f"row {number + 1}: synthetic, {each.title}, {len(each.volumes)} volumes; the bar spans 5 to 95%"
        page.text(MARGIN_IN, top_in + number * CAPTION_IN, text, 9, color=_colour(number))
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], linestyle="", color=INK, marker=MARKERS[number % len(MARKERS)], markersize=6)
        for number in range(len(audited))
    ]
    names = [shorten(item.scan.name, WIDTH_IN / 2 - 0.5, 9) for item in audited]
    height = page.figure.get_size_inches()[1]
    page.figure.legend(
        marks, names, loc="upper left", bbox_to_anchor=(0.5, 1 - (top_in - 0.06) / height), frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip


def _draw_measure(
    axes: "Axes", measure: Measure, audited: Sequence[AuditedScan], distributions: Sequence[Distribution]
) -> None:
    """Draw a row for each distribution, with its volumes, its range, and the scans."""
    for number, each in enumerate(distributions):
        values = each.of(measure.name)
        if not values:
            continue
        least, most = np.percentile(values, RANGE)
        axes.plot(
            [least, most], [-number, -number], color=_colour(number), linewidth=7, alpha=0.35, solid_capstyle="butt"
        )
        axes.plot(values, [-number] * len(values), "|", color=_colour(number), markersize=7)
    for number, item in enumerate(audited):
        for coverage in item.coverages:
            found = next(each.value for each in coverage.measures if each.measure == measure)
            rows = [row for row, each in enumerate(distributions) if each.recipe == coverage.distribution.recipe]
            same = [row for row in rows if distributions[row] is coverage.distribution] or rows
            if found is not None:
                mark = MARKERS[number % len(MARKERS)]
                axes.plot([found] * len(same), [-row for row in same], mark, color=INK, markersize=6, alpha=0.9)
    axes.set_ylim(-len(distributions) + 0.4, 0.6)
    axes.set_yticks([])
    axes.set_facecolor(PAPER)
    axes.tick_params(colors=FAINT, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
