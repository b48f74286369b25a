"""Pictures of a sweep: learning curves and parallel coordinates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from upfield.common.drawing import COLOURS, blank_page, png_bytes
from upfield.tune.space import format_value

CLEAR, GREY, INK = "none", "#808791", "#1b1e23"
# Labels lie over lines of any colour, on light and dark pages.
LABEL = {"facecolor": "#f4f6f8", "edgecolor": "none", "alpha": 0.85, "boxstyle": "round,pad=0.15"}
MAX_TICKS, MIN_TICK_DISTANCE = 6, 0.09
WIDTH_IN, HEIGHT_IN, DPI = 9.0, 3.6, 150


def learning_curves_png(
    curves: Sequence[tuple[Sequence[tuple[float, float]], int]], baselines: Sequence[float] = ()
) -> bytes:
    """Draw validation PSNR over epochs, with the trials of the best point in colour, and that of cubic interpolation.

    Args:
        curves: per trial, (epoch, PSNR in dB) of each validation and the rank of its point, 0 for the best.
        baselines: PSNR of cubic interpolation in dB; more than one if trials were validated on different slices.

    Returns:
        A PNG with a transparent background.

    Raises:
        InputError: matplotlib is not installed.
    """
    page = blank_page(WIDTH_IN, HEIGHT_IN, CLEAR, DPI)
    axes = page.axes(0.8, 0.4, WIDTH_IN - 1.0, HEIGHT_IN - 1.0)
    for points, rank in sorted(curves, key=lambda curve: -curve[1]):
        epochs, psnr = zip(*points, strict=True)
        is_best = rank == 0
        colour, alpha, width = (COLOURS[0], 1.0, 1.8) if is_best else (GREY, 0.5, 1.0)
        style = {"color": colour, "alpha": alpha, "linewidth": width, "marker": "." if len(points) < 20 else ""}
        axes.plot(epochs, psnr, label="best point" if is_best else "other points", **style)
    for value in baselines:
        axes.axhline(value, color=COLOURS[1], linestyle="--", label="cubic interpolation")
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, labelcolor=GREY)
    axes.set_title("validation PSNR (dB)", color=GREY, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel("epoch", color=GREY, fontsize=10)
    axes.grid(color=GREY, alpha=0.2)
    _style(axes)
    return png_bytes(page.figure)


def coordinates_png(points: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> bytes:
    """Draw each point as a line through its parameters to its score, brighter for better scores.

    Args:
        points: dotted key -> value; all have the same keys.
        scores: one per point, finite.

    Returns:
        A PNG with a transparent background.

    Raises:
        InputError: matplotlib is not installed.
    """
    keys = list(points[0])
    columns = [_positions([point[key] for point in points]) for key in keys] + [_positions(list(scores))]
    page = blank_page(WIDTH_IN, HEIGHT_IN, CLEAR, DPI)
    axes = page.axes(0.6, 0.3, WIDTH_IN - 1.2, HEIGHT_IN - 0.9)
    from matplotlib import colormaps

    heights = columns[-1][0]
    for line in sorted(range(len(points)), key=lambda number: heights[number]):
        colour = colormaps["viridis"](0.1 + 0.85 * heights[line])
        axes.plot(
            range(len(columns)),
            [column[0][line] for column in columns],
            color=colour,
            linewidth=1.6,
            alpha=0.9,
            zorder=2,
        )
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color=GREY, linewidth=1, zorder=1)
        for height, text in ticks:
            axes.text(place + 0.03, height, text, color=INK, fontsize=9, va="center", bbox=LABEL, parse_math=False)
    axes.set_xlim(-0.05, len(columns) - 0.75)
    axes.set_ylim(-0.08, 1.08)
    axes.set_xticks(range(len(columns)), [*keys, "PSNR (dB)"], color=GREY, fontsize=10)
    axes.set_yticks([])
    axes.set_facecolor(CLEAR)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return png_bytes(page.figure)


def _positions(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the position of each value on an axis from 0 to 1, and the axis's ticks as (position, label).

    Numbers lie on a linear axis, or on a logarithmic one if they span more than a factor of twenty. Other values are
    equally spaced.
    """
    distinct = sorted(set(map(_key, values)))
    if len(distinct) == 1 or any(key[0] for key in distinct):
        step = 1 / max(len(distinct) - 1, 1)
        at = {key: number * step if len(distinct) > 1 else 0.5 for number, key in enumerate(distinct)}
        return [at[_key(value)] for value in values], [(at[key], format_value(key[-1])) for key in distinct]
    numbers = np.array(values, dtype=np.float64)
    is_wide = numbers.min() > 0 and numbers.max() / numbers.min() > 20
    low, high = _scaled(numbers.min(), is_wide), _scaled(numbers.max(), is_wide)
    if len(distinct) <= MAX_TICKS:
        ticked = [key[-1] for key in distinct]
    else:
        between = np.linspace(low, high, MAX_TICKS)
        ticked = (np.exp(between) if is_wide else between).tolist()
    ticks = [(float(_scaled(value, is_wide) - low) / (high - low), format_value(value)) for value in ticked]
    return ((_scaled(numbers, is_wide) - low) / (high - low)).tolist(), _without_overlaps(ticks)


def _scaled(numbers: Any, is_wide: bool) -> Any:
    return np.log(numbers) if is_wide else numbers


def _without_overlaps(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Remove ticks whose labels would overlap others, but keep both ends of the axis."""
    kept = ticks[:1]
    for height, text in ticks[1:-1]:
        if height - kept[-1][0] >= MIN_TICK_DISTANCE and ticks[-1][0] - height >= MIN_TICK_DISTANCE:
            kept.append((height, text))
    return kept + ticks[1:][-1:]


def _key(value: Any) -> tuple[int, float, Any]:
    """Return a sort key that puts numbers first, by value, and everything else after them, by text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), value) if is_number else (1, 0.0, str(value))


def _style(axes: Any) -> None:
    axes.set_facecolor(CLEAR)
    axes.tick_params(which="both", colors=GREY, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
