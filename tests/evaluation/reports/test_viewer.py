"""The viewer shows both volumes as small pictures, and loads nothing from the web."""

import base64
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from upfield.common.errors import InputError
from upfield.evaluation.reports.viewer import SPACING_MM, coarsen, viewer_html

SPRITES = re.compile(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)")


def volume(level: float) -> np.ndarray:
    """Draw `(30, 33, 36)` float32: a box of one level on a zero background, with a bright core."""
    image = np.zeros((30, 33, 36), dtype=np.float32)
    image[6:24, 6:27, 6:30] = level
    image[12:18, 14:20, 15:21] = 1
    return image


def test_both_volumes_are_embedded_as_grey_pictures() -> None:
    html = viewer_html(volume(0.4), volume(0.8), (1, 1, 1), "a title")
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in SPRITES.findall(html)]
    assert len(images) == 2
    assert {image.mode for image in images} == {"L"}
    assert {image.size for image in images} == {(4 * 22, 5 * 24)}  # 20 sagittal slices of 22 x 24
    # Both have the same brightness scale, so fading from one to the other does not change the brightness.
    levels = [np.asarray(image) / 255 for image in images]
    found = [np.median(level[(level > 0.2) & (level < 0.95)]) for level in levels]
    assert found == pytest.approx([0.4, 0.8], abs=0.02)
    assert "a title" in html
    assert "base64,iVBOR" not in html


def test_the_viewer_loads_nothing_from_the_web() -> None:
    html = viewer_html(volume(0.4), volume(0.8), (1, 1, 1), "a title")
    assert not re.search(r"(src|href)\s*=\s*[\"'](https?:)?//", html)
    assert "cubic to restored" in html


def test_voxels_of_any_spacing_cover_the_same_field_of_view() -> None:
    image = volume(1)
    assert coarsen(image, np.array([1.0, 1.0, 1.0])).shape == (20, 22, 24)
    assert coarsen(image, np.array([3.0, 1.0, 0.5])).shape == (60, 22, 12)
    assert coarsen(image, np.full(3, 1.0)).mean() * SPACING_MM**3 == pytest.approx(
        image.mean() * SPACING_MM**3, rel=0.05
    )
    assert (coarsen(image, np.full(3, 1.0)).min(), coarsen(image, np.full(3, 1.0)).max()) == (0, 1)


def test_without_nilearn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn.plotting", None)
    with pytest.raises(InputError, match=r"pip install 'upfield\[demo\]'"):
        viewer_html(volume(0.4), volume(0.8), (1, 1, 1), "a title")
