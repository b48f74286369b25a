"""Draw text and slices with matplotlib on pages that are laid out in inches, with common colours."""

import io
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from upfield.common.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PAPER, INK, FAINT = "#101317", "#e8eaed", "#9aa0a8"
LETTER = "#ffd866"
LEAST_LETTERED_IN = 1.0
# Which side of the head lies at the left and at the right edge of a picture; `viewer.js` follows the same convention.
SIDES = {"sagittal": ("A", "P"), "coronal": ("L", "R"), "axial": ("L", "R")}
COLOURS = ("#5aa9e6", "#f2a541", "#63c586", "#e07a97", "#b195ea", "#cbbb5c")


@dataclass(frozen=True)
class Page:
    """A picture on which positions are measured in inches from its top left corner."""

    figure: "Figure"
    """The figure to draw on."""

    def axes(self, left_in: float, top_in: float, width_in: float, height_in: float) -> "Axes":
        """Add axes to the page and return them."""
        width, height = self.figure.get_size_inches()
        bottom_in = height - top_in - height_in
        return self.figure.add_axes((left_in / width, bottom_in / height, width_in / width, height_in / height))

    def image(
        self, box_in: tuple[float, float, float, float], pixels: "NDArray[Any]", plane: str = "sagittal", **options: Any
    ) -> "Axes":
        """Draw a slice upright, with a letter at each side that says which side of the head it is.

        Args:
            box_in: left, top, width and height of the image on the page. Narrow images have no letters.
            pixels: slice in [0, 1]: `(Y, Z)`, `(X, Z)` or `(X, Y)`; see `upright`.
            plane: `sagittal`, `coronal` or `axial`.
            options: further arguments of `imshow`.

        Returns:
            The axes, without a frame.
        """
        axes = self.axes(*box_in)
        axes.imshow(upright(pixels, plane), **({"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": "auto"} | options))
        axes.set_axis_off()
        if box_in[2] >= LEAST_LETTERED_IN:
            _draw_sides(axes, plane)
        return axes

    def text(self, left_in: float, top_in: float, text: str, size: float = 9, **options: Any) -> None:
        """Write text with its top left corner at the given position, unless `options` for `Figure.text` change that."""
        width, height = self.figure.get_size_inches()
        style = {"color": INK, "va": "top", "ha": "left", "fontsize": size, "parse_math": False} | options
        self.figure.text(left_in / width, 1 - top_in / height, text, **style)


def _draw_sides(axes: "Axes", plane: str) -> None:
    from matplotlib.patheffects import withStroke

    # The outline keeps letters readable on maps with a white background.
    outline = [withStroke(linewidth=1.6, foreground="black")]
    for place, side, letter in zip((0.03, 0.97), ("left", "right"), SIDES[plane], strict=True):
        style = {"color": LETTER, "fontsize": 8, "va": "top", "ha": side, "path_effects": outline}
        axes.text(place, 0.98, letter, transform=axes.transAxes, **style)


def upright(pixels: "NDArray[Any]", plane: str = "sagittal") -> "NDArray[Any]":
    """Turn a slice of a RAS+ volume to the view of all pictures: sagittal slices face left.

    Sagittal and coronal slices have superior at the top, and axial slices have anterior at the top. Anterior is at the
    left of a sagittal slice, and the subject's left is at the left of the other planes.

    Args:
        pixels: `(Y, Z)` of a sagittal, `(X, Z)` of a coronal or `(X, Y)` of an axial slice; X toward the right,
            Y toward anterior, Z toward superior. A third axis may hold colours.
        plane: `sagittal`, `coronal` or `axial`.

    Returns:
        The same pixels as `(rows, columns)` or `(rows, columns, colours)`, rows from the top and columns from the left,
        as in image files.
    """
    facing = pixels[::-1] if plane == "sagittal" else pixels
    return facing[:, ::-1].swapaxes(0, 1)


def expect_matplotlib(extra: str = "demo") -> None:
    """Raise InputError if matplotlib is not installed. It is not imported, so a command can call this first.

    Args:
        extra: extra of the package that installs it.
    """
    if find_spec("matplotlib") is None:
        raise InputError(f"Pictures need matplotlib. Install it with: pip install 'upfield[{extra}]'")


def blank_page(width_in: float, height_in: float, paper: str, dpi: int = 100) -> Page:
    """Return an empty page.

    Raises:
        InputError: matplotlib is not installed.
    """
    expect_matplotlib()
    from matplotlib.figure import Figure

    return Page(Figure((width_in, height_in), dpi=dpi, facecolor=paper))


def png_bytes(figure: "Figure") -> bytes:
    """Encode a figure as PNG. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()


def shorten(text: str, width_in: float, size: float) -> str:
    """Replace the middle of a text by an ellipsis if it is wider than `width_in` at a font size of `size` points."""
    most = max(int(width_in * 72 / (0.62 * size)), 4)
    if len(text) <= most:
        return text
    return f"{text[: (most - 1) // 2]}…{text[len(text) - most // 2 :]}"
