"""The pictures of a report can be drawn from few, equal or infinite values."""

import sys

import matplotlib.image
import numpy as np
import pytest

from upfield.common.errors import InputError
from upfield.common.html_page import PNG_SIGNATURE
from upfield.evaluation.measurements import ExampleSlice
from upfield.evaluation.reports.figures import curves_png, distribution_png, example_slices_png

RNG = np.random.default_rng(0)


def training(step):
    return {"event": "train", "step": step, "loss": 1 / step, "lr": 2e-4}


def validation(step, psnr=25.0):
    return {"event": "validation", "step": step, "psnr_slice": psnr, "cubic_psnr_slice": 23.0}


def make_example(key="a-b-real-0-x001"):
    scan, cubic, restored, high = RNG.random((4, 22, 20))
    return ExampleSlice(
        key, scan, cubic, restored, high, {"psnr_slice": 30.0, "cubic_psnr_slice": 25.0, "ssim_slice": 0.9}
    )


def decode(png, tmp_path):
    assert png.startswith(PNG_SIGNATURE)
    (tmp_path / "picture.png").write_bytes(png)
    return matplotlib.image.imread(tmp_path / "picture.png")


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [training(1)],
        [validation(10)],
        [validation(10, float("nan"))],
        [training(step) for step in range(1, 100)] + [validation(step, step / 2) for step in (25, 50, 75)],
    ],
)
def test_curves_can_be_drawn_from_any_number_of_log_lines(metrics, tmp_path):
    picture = decode(curves_png(metrics), tmp_path)
    assert picture.shape == (544, 1440, 4)
    assert picture[0, 0, 3] == 0


def test_each_example_makes_the_picture_taller(tmp_path):
    one, three = (decode(example_slices_png([make_example()] * count), tmp_path) for count in (1, 3))
    assert one.shape[1] == three.shape[1]
    assert one.shape[0] < three.shape[0]


def test_special_characters_in_a_key_are_drawn(tmp_path):
    assert decode(example_slices_png([make_example("<b>'$x')</b> & $x")]), tmp_path).ndim == 3


def test_equal_examples_have_no_error_to_scale(tmp_path):
    image = np.zeros((22, 20))
    assert decode(example_slices_png([ExampleSlice("same", image, image, image, image)]), tmp_path).ndim == 3


@pytest.mark.parametrize("cubic", [[20.0, np.inf, 22.0], [np.inf], []])
def test_perfect_slices_do_not_spoil_the_distribution(cubic, tmp_path):
    assert decode(distribution_png({"cubic": np.array(cubic), "model": np.full(3, 25.0)}), tmp_path).ndim == 3


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (lambda: curves_png([]), lambda: example_slices_png([make_example()]), lambda: distribution_png({})):
        with pytest.raises(InputError, match=r"pip install 'upfield\[demo\]'"):
            draw()
