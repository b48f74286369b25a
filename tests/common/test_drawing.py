import sys

import matplotlib.image
import numpy as np
import pytest

from upfield.common.drawing import blank_page, png_bytes, shorten, upright
from upfield.common.errors import InputError

# A block at the right, the front and the top of a head, in a RAS+ volume.
HEAD = np.zeros((24, 22, 20))
HEAD[-8:, -6:, -4:] = 1
# Where the block lies in each plane: at the left or the right edge of the picture. It is always at the top.
PLANES = {"sagittal": (HEAD[-1], "left"), "coronal": (HEAD[:, -1], "right"), "axial": (HEAD[:, :, -1], "right")}


@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_drawn_upright_and_sagittal_ones_face_left(plane, tmp_path):
    pixels, side = PLANES[plane]
    page = blank_page(0.9, 0.9, "black")
    page.image((0, 0, 0.9, 0.9), pixels, plane)
    (tmp_path / "slice.png").write_bytes(png_bytes(page.figure))
    drawn = matplotlib.image.imread(tmp_path / "slice.png")[..., 0]
    drawn = drawn if side == "left" else drawn[:, ::-1]
    assert drawn[:16, :22].min() > 0.9
    assert drawn[30:].max() == drawn[:, 40:].max() == 0


def test_large_slices_have_letters_at_their_sides():
    page = blank_page(2, 2, "black")
    letters = [text.get_text() for text in page.image((0, 0, 2, 2), HEAD[0], "sagittal").texts]
    assert letters == ["A", "P"]
    assert [text.get_text() for text in page.image((0, 0, 2, 2), HEAD[:, 0], "coronal").texts] == ["L", "R"]


@pytest.mark.parametrize("colours", [(), (4,)])
def test_the_first_row_is_superior_and_the_first_column_anterior(colours):
    pixels = np.arange(22 * 20 * 4).reshape(22, 20, 4)[..., slice(None) if colours else 0]
    rotated = upright(pixels)
    assert rotated.shape == (20, 22, *colours)
    assert (rotated[0, 0] == pixels[-1, -1]).all()
    assert (rotated[0, -1] == pixels[0, -1]).all()


@pytest.mark.parametrize("text", ["IXI015", "s" * 40])
def test_labels_fit_their_column(text):
    short = shorten(text, 1.2, 9)
    assert len(short) <= 15
    assert (short == text) == (len(text) <= 15)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'upfield\[demo\]'"):
        blank_page(1, 1, "black")
