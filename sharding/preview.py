"""`upfield preview`: a picture of pairs as the reader gives them, low over high, per cohort and kind."""

import io
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from upfield.sharding.atomic import atomic_path
from upfield.sharding.command import Command, execute
from upfield.sharding.configuration import PreviewConfig
from upfield.sharding.errors import InputError, ShardSetError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from upfield.sharding.shardset import ShardSplit

T = TypeVar("T")

# From the right: a subject's id may hold hyphens and even the name of a kind, a cohort's may not.
KEY = re.compile(r"(?P<cohort>[^-]+)-(?P<subject>.+)-(?P<kind>real|synthetic)-(?P<variant>\d+)-x(?P<x>\d+)")
MOST_PAIRS = 80
BACKGROUND = 0.1
LEAST_ANATOMY = 0.2
READ_PER_GROUP, READ_PER_PAIR = 24, 6

MOST_COLUMNS, FEWEST_COLUMNS = 8, 4
COLUMN_IN, GAP_IN, MARGIN_IN = 1.9, 0.06, 0.32
TITLE_IN, LABEL_IN, CAPTION_IN, BAND_GAP_IN = 0.5, 0.26, 0.42, 0.22
HISTOGRAM_IN, AXIS_IN, LEGEND_IN = 1.9, 0.5, 2.1
PAPER, INK, FAINT = "#101317", "#e8eaed", "#9aa0a8"
COLOURS = ("#5aa9e6", "#f2a541", "#63c586", "#e07a97", "#b195ea", "#cbbb5c")


@dataclass(frozen=True)
class KeyParts:
    """What a sample's key says."""

    cohort: str
    """Cohort name."""
    subject: str
    """Subject id, as keys spell it."""
    kind: str
    """`real` or `synthetic`."""
    variant: int
    """Number of the synthetic variant."""
    x: int
    """Sagittal slice."""


@dataclass(frozen=True)
class Slice:
    """One sample, read."""

    parts: KeyParts
    """Where it comes from."""
    low: "NDArray[np.float32]"
    """`(1 + 2*context, Y, Z)` in [0, 1]."""
    high: "NDArray[np.float32]"
    """`(Y, Z)` in [0, 1]."""

    @property
    def centre(self) -> "NDArray[np.float32]":
        """The low-field slice itself, `(Y, Z)`, without its neighbours."""
        return self.low[len(self.low) // 2]


@dataclass(frozen=True)
class Group:
    """What is shown of one cohort and kind."""

    cohort: str
    """Cohort name."""
    kind: str
    """`real` or `synthetic`."""
    shown: list[Slice]
    """Drawn as pictures."""
    measured: list[Slice]
    """Drawn as histograms; `shown` is among them."""


def parse_key(key: str) -> KeyParts:
    """Take a sample key apart.

    Raises:
        ShardSetError: not a key that `upfield shard` writes.
    """
    match = KEY.fullmatch(key)
    if match is None:
        raise ShardSetError(f"expected a key like cohort-subject-kind-variant-x090, found {key!r}; rebuild the set")
    cohort, subject, kind, variant, x = match.groups()
    return KeyParts(cohort, subject, kind, int(variant), int(x))


def choose_groups(split: "ShardSplit", pairs: int, seed: int) -> list[Group]:
    """Choose pairs spread evenly over cohorts and kinds, and within them over subjects, from slices with anatomy.

    Args:
        split: what to choose from.
        pairs: how many.
        seed: of the choice.

    Returns:
        Every cohort and kind of the split in order, those that `pairs` does not reach with nothing shown.
    """
    import numpy as np

    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    parts = [parse_key(split.key(sample)) for sample in range(split.num_samples)]
    for sample, part in enumerate(parts):
        members[part.cohort, part.kind].append(sample)
    names = sorted(members)
    shares = share_evenly([len(members[name]) for name in names], pairs)
    groups: list[Group] = []
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        rng = np.random.default_rng([seed, number])
        order = _take_turns(rng.permutation(members[name]).tolist(), lambda sample: parts[sample].subject)
        slices = [read_slice(split, sample) for sample in order[: READ_PER_GROUP + READ_PER_PAIR * share]]
        measured = _fullest_first(slices, share)
        shown = sorted(measured[:share], key=lambda s: (s.parts.subject, s.parts.variant, s.parts.x))
        groups.append(Group(*name, shown, measured))
    return groups


def share_evenly(sizes: Sequence[int], total: int) -> list[int]:
    """Give each group its part of `total`, as even as the sizes allow, the first ones more where it does not divide."""
    shares = [0] * len(sizes)
    for _ in range(min(total, sum(sizes))):
        open_groups = [i for i, size in enumerate(sizes) if shares[i] < size]
        shares[min(open_groups, key=lambda i: shares[i])] += 1
    return shares


def _take_turns(items: Iterable[T], subject_of: Callable[[T], str]) -> list[T]:
    """Order items so that each subject has had its turn before any has its next."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, T]] = []
    for item in items:
        subject = subject_of(item)
        turns.append((seen[subject], item))
        seen[subject] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


def _fullest_first(slices: list[Slice], least: int) -> list[Slice]:
    """Keep slices with anatomy, by turns; where they are fewer than `least`, the fullest of the others follow."""

    def filled(item: Slice) -> float:
        return float((item.high > BACKGROUND).mean())

    kept = [item for item in slices if filled(item) >= LEAST_ANATOMY]
    others = sorted((item for item in slices if filled(item) < LEAST_ANATOMY), key=filled, reverse=True)
    return _take_turns(kept, lambda item: item.parts.subject) + others[: max(least - len(kept), 0)]


def read_slice(split: "ShardSplit", sample: int) -> Slice:
    """Read one sample as training reads it."""
    import numpy as np

    low = np.empty((1, *split.low_shape), dtype=np.float16)
    high = np.empty((1, *split.high_shape), dtype=np.float16)
    split.read_into([sample], low, high)
    return Slice(parse_key(split.key(sample)), low[0].astype(np.float32), high[0, 0].astype(np.float32))


@dataclass(frozen=True)
class Page:
    """A picture laid out in inches from its top left corner."""

    figure: "Figure"
    """What is drawn on."""

    def axes(self, left_in: float, top_in: float, width_in: float, height_in: float) -> "Axes":
        """Add axes."""
        width, height = self.figure.get_size_inches()
        bottom_in = height - top_in - height_in
        return self.figure.add_axes((left_in / width, bottom_in / height, width_in / width, height_in / height))

    def image(self, box_in: tuple[float, float, float, float], pixels: "NDArray[Any]", **options: Any) -> "Axes":
        """Draw a sagittal slice.

        Args:
            box_in: left, top, width, height.
            pixels: `(Y, Z)` in [0, 1], Y toward anterior, Z toward superior.
            options: of `imshow`.

        Returns:
            The axes, without frame.
        """
        axes = self.axes(*box_in)
        # Superior up, anterior to the left: the way sagittal slices are read.
        axes.imshow(pixels[::-1].T, **({"cmap": "gray", "vmin": 0, "vmax": 1, "origin": "lower"} | options))
        axes.set_axis_off()
        return axes

    def text(self, left_in: float, top_in: float, text: str, size: float = 9, **options: Any) -> None:
        """Write text, its top left corner there unless `options` align it otherwise."""
        width, height = self.figure.get_size_inches()
        style = {"color": INK, "va": "top", "ha": "left", "fontsize": size, "parse_math": False} | options
        self.figure.text(left_in / width, 1 - top_in / height, text, **style)


def blank_page(width_in: float, height_in: float, paper: str, dpi: int = 100) -> Page:
    """Give an empty page.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "expected matplotlib, which draws the pictures, found none; pip install 'upfield[demo]'"
        ) from error
    return Page(Figure((width_in, height_in), dpi=dpi, facecolor=paper))


def png_bytes(figure: "Figure") -> bytes:
    """Render a figure to PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()


def shorten(text: str, width_in: float, size: float) -> str:
    """Cut the middle out of a text that would be wider than `width_in` at a font size in points."""
    most = max(int(width_in * 72 / (0.62 * size)), 4)
    if len(text) <= most:
        return text
    return f"{text[: (most - 1) // 2]}…{text[len(text) - most // 2 :]}"


def draw_preview(groups: list[Group], title: str) -> bytes:
    """Draw pairs in columns, low over high, and below them how intensities are distributed.

    Args:
        groups: what to show, at least one slice.
        title: first line of the picture.

    Returns:
        A PNG.
    """
    cells = [(number, item) for number, group in enumerate(groups) for item in group.shown]
    num_bands = -(-len(cells) // MOST_COLUMNS)
    per_band = -(-len(cells) // num_bands)
    image_in, context_in, band_in = _heights(cells[0][1])
    width_in = MARGIN_IN + max(per_band, FEWEST_COLUMNS) * (COLUMN_IN + GAP_IN)
    below_in = TITLE_IN + num_bands * band_in + LABEL_IN
    page = blank_page(width_in, below_in + HISTOGRAM_IN + AXIS_IN, PAPER)
    page.text(MARGIN_IN, 0.16, shorten(title, width_in - MARGIN_IN, 11), 11)
    for band in range(num_bands):
        row, top_in = cells[band * per_band : (band + 1) * per_band], TITLE_IN + band * band_in
        _draw_labels(page, groups, row, top_in)
        top_in += LABEL_IN + CAPTION_IN
        for column, (_, item) in enumerate(row):
            _draw_pair(page, item, MARGIN_IN + column * (COLUMN_IN + GAP_IN), top_in)
        for name, offset_in in (("low field", 0), ("high field", image_in + context_in + GAP_IN)):
            middle_in = top_in + offset_in + image_in / 2
            page.text(MARGIN_IN / 2, middle_in, name, 9, rotation=90, va="center", ha="center", color=FAINT)
    _draw_histograms(page, groups, below_in, width_in)
    return png_bytes(page.figure)


def _heights(item: Slice) -> tuple[float, float, float]:
    """Give the heights in inches of an image, of the row of its neighbours, and of a whole band of pairs."""
    width_vox, height_vox = item.high.shape
    image_in = COLUMN_IN * height_vox / width_vox
    context_in = _neighbour_width(item) * height_vox / width_vox
    return image_in, context_in, LABEL_IN + CAPTION_IN + 2 * image_in + context_in + GAP_IN + BAND_GAP_IN


def _neighbour_width(item: Slice) -> float:
    return COLUMN_IN / max(len(item.low) - 1, 4) if len(item.low) > 1 else 0.0


def _draw_labels(page: Page, groups: list[Group], row: list[tuple[int, Slice]], top_in: float) -> None:
    """Draw a coloured bar over the columns of each group, with its name."""
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


def _draw_pair(page: Page, item: Slice, left_in: float, top_in: float) -> None:
    parts, (image_in, context_in, _) = item.parts, _heights(item)
    caption = f"{shorten(parts.subject, COLUMN_IN - 0.1, 9)}\nvariant {parts.variant}, x{parts.x:03d}"
    page.text(left_in + 0.04, top_in - 0.06, caption, 9, linespacing=1.25, va="bottom")
    page.image((left_in, top_in, COLUMN_IN, image_in), item.centre)
    neighbours = [channel for number, channel in enumerate(item.low) if number != len(item.low) // 2]
    for number, channel in enumerate(neighbours):
        small_in = _neighbour_width(item)
        page.image((left_in + number * small_in, top_in + image_in, small_in, context_in), channel)
    page.image((left_in, top_in + image_in + context_in + GAP_IN, COLUMN_IN, image_in), item.high)


def _draw_histograms(page: Page, groups: list[Group], top_in: float, width_in: float) -> None:
    """Draw, for low and high field, the intensities of each group's slices where the high field has anatomy."""
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
    import numpy as np

    images = [(item.centre if field == "low" else item.high, item.high > BACKGROUND) for item in group.measured]
    values = np.concatenate([image[anatomy] for image, anatomy in images])
    # What normalisation clipped lies on 0 and 1 exactly; those two spikes would hide the rest.
    counts, edges = np.histogram(values[(values > 0) & (values < 1)], bins=64, range=(0, 1))
    label = f"{shorten(f'{group.cohort}, {group.kind}', LEGEND_IN - 0.6, 9)}\n{len(group.measured)} slices"
    filled = group.kind == "real"
    style = {"fill": True, "alpha": 0.55, "zorder": 1, "linewidth": 0} if filled else {"zorder": 2, "linewidth": 1.6}
    axes.stairs(counts * 64 / max(counts.sum(), 1), edges, color=colour, label=label, **style)


def preview(config: PreviewConfig) -> None:
    """Draw the picture and print what is on it."""
    from upfield.sharding.shardset import ShardSplit

    assert config.shards is not None
    assert config.out is not None
    if config.out.suffix.lower() != ".png":
        raise InputError(f"--out: expected a file name that ends in .png, found {config.out}; pictures are PNG only")
    if config.pairs > MOST_PAIRS:
        raise InputError(f"pairs: expected at most {MOST_PAIRS}, which fill one picture, found {config.pairs}")
    split = ShardSplit(config.shards, config.split)
    if split.num_samples == 0:
        raise InputError(f"{config.shards}: expected samples in split {config.split}, found none; see --split")
    groups = choose_groups(split, config.pairs, config.seed)
    data = split.manifest.data_sha256[:12]
    title = f"{config.split}: {split.num_samples} samples, data {data}, seed {config.seed}"
    picture = draw_preview(groups, title)
    with atomic_path(config.out) as temporary:
        temporary.write_bytes(picture)
    shown = ", ".join(f"{group.cohort} {group.kind} {len(group.shown)}" for group in groups)
    print(f"{config.out}: pairs of {config.split} by cohort and kind: {shown}")


COMMAND = Command("preview", PreviewConfig, preview, positional=("shards",), required=("shards", "out"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
