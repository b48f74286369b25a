import sys

import matplotlib.image
import numpy as np
import pytest

from upfield.common.drawing import blank_page, png_bytes, shorten, upright
from upfield.common.errors import InputError


def test_slices_are_drawn_upright_and_face_left(tmp_path):
    pixels = np.zeros((22, 20))
    pixels[-6:, -4:] = 1
    page = blank_page(2.2, 2.0, "black")
    page.image((0, 0, 2.2, 2.0), pixels)
    (tmp_path / "slice.png").write_bytes(png_bytes(page.figure))
    drawn = matplotlib.image.imread(tmp_path / "slice.png")[..., 0]
    assert drawn[:35, :55].min() > 0.9
    assert drawn[45:].max() == drawn[:, 65:].max() == 0


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
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'upfield\[demo\]'"):
        blank_page(1, 1, "black")
