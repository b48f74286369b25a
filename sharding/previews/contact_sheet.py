"""Draw pairs in columns: low field, high field, the high field's outline over the low, and histograms of both."""

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from upfield.common.drawing import COLOURS, FAINT, INK, PAPER, Page, blank_page, png_bytes, shorten
from upfield.sharding.previews.overlay import draw_overlay
from upfield.sharding.previews.selection import BACKGROUND, Group, Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COLUMNS, FEWEST_COLUMNS = 8, 4
COLUMN_IN, GAP_IN, MARGIN_IN = 1.9, 0.06, 0.32
TITLE_IN, LABEL_IN, CAPTION_IN, BAND_GAP_IN = 0.5, 0.26, 0.42, 0.22
HISTOGRAM_IN, AXIS_IN, LEGEND_IN = 1.9, 0.5, 2.1
HISTOGRAMS_WIDTH_IN = 12.0


def draw_sheet(groups: list[Group], title: str, overlay: str) -> bytes:
    """Draw pairs in columns (low field, high field, overlay), and histograms of their intensities below.

    Args:
        groups: slices to show, at least one.
        title: first line of the picture.
        overlay: `contour`, `checkerboard`, or `none` to leave that row out.

    Returns:
        A PNG file.
    """
    cells = [(number, item) for number, group in enumerate(groups) for item in group.shown]
    num_bands = -(-len(cells) // MOST_COLUMNS)
    per_band = -(-len(cells) // num_bands)
    rows = _rows(cells[0][1], overlay)
    band_in = LABEL_IN + CAPTION_IN + sum(height_in + GAP_IN for height_in in rows.values()) + BAND_GAP_IN
    width_in = MARGIN_IN + max(per_band, FEWEST_COLUMNS) * (COLUMN_IN + GAP_IN)
    below_in = TITLE_IN + num_bands * band_in + LABEL_IN
    page = blank_page(width_in, below_in + HISTOGRAM_IN + AXIS_IN, PAPER)
    page.text(MARGIN_IN, 0.16, shorten(title, width_in - MARGIN_IN, 11), 11)
    for band in range(num_bands):
        _draw_band(page, groups, cells[band * per_band : (band + 1) * per_band], TITLE_IN + band * band_in, rows)
    _draw_histograms(page, groups, below_in, width_in)
    return png_bytes(page.figure)


def draw_histograms(groups: list[Group]) -> bytes:
    """Draw histograms of low and high field for each group, over the pixels where the high field shows anatomy.

    Args:
        groups: slices to measure.

    Returns:
        A PNG file.
    """
    page = blank_page(HISTOGRAMS_WIDTH_IN, LABEL_IN + HISTOGRAM_IN + AXIS_IN, PAPER)
    _draw_histograms(page, groups, LABEL_IN, HISTOGRAMS_WIDTH_IN)
    return png_bytes(page.figure)


def _rows(item: Slice, overlay: str) -> dict[str, float]:
    """Return the rows of a column from top to bottom, each with its height in inches."""
    image_in = COLUMN_IN * item.high.shape[1] / item.high.shape[0]
    rows = {"low field": image_in}
    if len(item.low) > 1:
        rows["context"] = image_in * _neighbour_width(item) / COLUMN_IN
    rows["high field"] = image_in
    return rows if overlay == "none" else rows | {overlay: image_in}


def _neighbour_width(item: Slice) -> float:
    return COLUMN_IN / max(len(item.low) - 1, 4)


def _draw_band(
    page: Page, groups: list[Group], cells: list[tuple[int, Slice]], top_in: float, rows: dict[str, float]
) -> None:
    _draw_labels(page, groups, cells, top_in)
    top_in += LABEL_IN + CAPTION_IN
    for column, (_, item) in enumerate(cells):
        _draw_caption(page, item, MARGIN_IN + column * (COLUMN_IN + GAP_IN), top_in)
    for name, height_in in rows.items():
        for column, (_, item) in enumerate(cells):
            _draw_row(page, name, item, (MARGIN_IN + column * (COLUMN_IN + GAP_IN), top_in, COLUMN_IN, height_in))
        if name != "context":
            page.text(
                MARGIN_IN / 2, top_in + height_in / 2, name, 9, rotation=90, va="center", ha="center", color=FAINT
            )
        top_in += height_in + GAP_IN


def _draw_labels(page: Page, groups: list[Group], row: list[tuple[int, Slice]], top_in: float) -> None:
    """Draw a coloured bar with the group's name over the columns of each group."""
    from matplotlib.patches import Rectangle

    width, height = page.figure.get_size_inches()
    left_in = MARGIN_IN
    for number, run in groupby(row, key=lambda cell: cell[0]):
        wide_in = len(list(run)) * (COLUMN_IN + GAP_IN) - GAP_IN
        corner = left_in / width, 1 - (top_in + LABEL_IN) / height
        bar = Rectangle(corner, wide_in / width, LABEL_IN / height, color=COLOURS[number % len(COLOURS)])
        page.figure.add_artist(bar)
        name = shorten(f"{groups[number].cohort}, {groups[number].kind}", wide_in - 0.16, 10)
        page.text(left_in + 0.08, top_in + LABEL_IN / 2, name, 10, va="center_baseline", color=PAPER, weight="bold")
        left_in += wide_in + GAP_IN


def _draw_caption(page: Page, item: Slice, left_in: float, top_in: float) -> None:
    key = item.key
    # The sample's key, on two lines.
    caption = f"{shorten(f'{key.cohort}-{key.subject}-', COLUMN_IN - 0.1, 9)}\n{key.kind}-{key.variant}-x{key.x:03d}"
    page.text(left_in + 0.04, top_in - 0.06, caption, 9, linespacing=1.25, va="bottom")


def _draw_row(page: Page, name: str, item: Slice, box_in: tuple[float, float, float, float]) -> None:
    """Draw one row of a column."""
    if name == "context":
        left_in, top_in, _, height_in = box_in
        small_in = _neighbour_width(item)
        neighbours = [channel for number, channel in enumerate(item.low) if number != len(item.low) // 2]
        for number, channel in enumerate(neighbours):
            page.image((left_in + number * small_in, top_in, small_in, height_in), channel)
    elif name == "high field":
        page.image(box_in, item.high)
    else:
        page.image(box_in, item.centre)
        if name != "low field":
            page.image(box_in, draw_overlay(name, item.high))


def _draw_histograms(page: Page, groups: list[Group], top_in: float, width_in: float) -> None:
    panel_in = (width_in - LEGEND_IN - 2 * AXIS_IN) / 2
    for number, field in enumerate(("low", "high")):
        axes = page.axes(AXIS_IN + number * (panel_in + AXIS_IN), top_in, panel_in, HISTOGRAM_IN)
        for colour, group in enumerate(groups):
            _draw_histogram(axes, group, field, COLOURS[colour % len(COLOURS)])
        axes.set_title(f"{field} field in anatomy, density", color=INK, fontsize=10, loc="left")
        axes.set_xlabel("intensity", color=FAINT, fontsize=9)
        axes.set(xlim=(0, 1), facecolor=PAPER)
        axes.set_ylim(bottom=0)
        axes.tick_params(colors=FAINT, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
    place = 1 - (LEGEND_IN - 0.15) / width_in, 1 - top_in / page.figure.get_size_inches()[1]
    handles, labels = page.figure.axes[-1].get_legend_handles_labels()
    style = {"frameon": False, "fontsize": 9, "labelcolor": INK}
    page.figure.legend(handles, labels, loc="upper left", bbox_to_anchor=place, **style)


def _draw_histogram(axes: "Axes", group: Group, field: str, colour: str) -> None:
    images = [(item.centre if field == "low" else item.high, item.high > BACKGROUND) for item in group.measured]
    values = np.concatenate([np.empty(0, dtype=np.float32), *(image[anatomy] for image, anatomy in images)])
    # Normalisation clips voxels to exactly 0 and 1; these two spikes would hide the rest.
    counts, edges = np.histogram(values[(values > 0) & (values < 1)], bins=64, range=(0, 1))
    label = f"{shorten(f'{group.cohort}, {group.kind}', LEGEND_IN - 0.6, 9)}\n{len(group.measured)} slices"
    filled = group.kind == "real"
    style = {"fill": True, "alpha": 0.55, "zorder": 1, "linewidth": 0} if filled else {"zorder": 2, "linewidth": 1.6}
    axes.stairs(counts * 64 / max(counts.sum(), 1), edges, color=colour, label=label, **style)
