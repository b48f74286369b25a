"""The viewer holds all images of a volume, with linear grey levels, and shows them in the browser and in print."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from PIL import Image

from upfield.common.errors import InputError
from upfield.common.html_page import write_report
from upfield.evaluation.measurements import CUBIC, MODEL, VolumeImages
from upfield.evaluation.reports.figures import COLUMN_TITLES
from upfield.evaluation.reports.viewer import LEAST_SPACING_MM, coarsen, viewer_section

SPACING_MM = (1.5, 2.0, 2.5)
# The level of the block in each image; the errors are then 0.4 and 0.2, of which 0.4 is the brightest.
LEVELS = {"scan": 0.3, CUBIC: 0.4, MODEL: 0.6, "high": 0.8}
SHOWN = "document.getElementById('viewer').dataset.shown"
CANVASES = """[...document.querySelectorAll("canvas")].map((canvas) => {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let weight = 0, x = 0, y = 0;
  const levels = [];
  for (let pixel = 0; pixel < width * height; pixel++) {
    const [red, green, blue] = data.slice(4 * pixel, 4 * pixel + 3);
    // Coloured pixels belong to the crosshair or to a letter.
    if (red !== green || green !== blue || red < 40) continue;
    weight += 1; x += pixel % width; y += Math.floor(pixel / width); levels.push(red);
  }
  return [x / weight / width, y / weight / height, levels.sort()[Math.floor(weight / 2)]];
})"""


def volume(level: float) -> np.ndarray:
    """Draw `(40, 44, 48)` float32, 0 but for a block of one level at the right, the front and the top."""
    image = np.zeros((40, 44, 48), dtype=np.float32)
    image[16:40, 18:44, 20:48] = level
    return image


@pytest.fixture(scope="module")
def images() -> VolumeImages:
    restored = {name: volume(LEVELS[name]) for name in (CUBIC, MODEL)}
    return VolumeImages("<i>name", volume(0.3), volume(0.8), restored, {}, {}, SPACING_MM)


@pytest.fixture(scope="module")
def page(images: VolumeImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viewer") / "page.html"
    write_report(path, "title", [viewer_section(images, "In three planes")])
    return path


def choose(browser: Browser, title: str) -> None:
    """Choose an image as a person does, and wait until it is drawn."""
    number = COLUMN_TITLES.index(title)
    browser.ask(f"document.querySelectorAll('input[name=image]')[{number}].click()")
    browser.wait_for(f"{SHOWN} === '{number}'")


def test_all_images_are_embedded_as_grey_pictures_of_linear_levels(page: Path) -> None:
    (text,) = re.findall(r'<script type="application/json" id="volumes">(.*?)</script>', page.read_text())
    data = json.loads(text)
    assert data["shape"] == [40, 44, 48]
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["jpeg"]))) for image in data["images"]]
    assert {picture.mode for picture in pictures} == {"L"}
    rows = -(-40 // data["columns"])
    assert {picture.size for picture in pictures} == {(data["columns"] * 44, rows * 48)}
    brightest = [np.percentile(np.asarray(picture), 98) / 255 for picture in pictures]
    assert brightest == pytest.approx([*LEVELS.values(), 1, 0.5], abs=0.02)
    assert ["palette" in image for image in data["images"]] == 4 * [False] + 2 * [True]


def test_the_block_is_at_the_front_and_the_top_of_each_plane(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    browser.wait_for(f"{SHOWN} === '2'")
    assert browser.complaints == []
    (sagittal, coronal, axial) = browser.ask(CANVASES)
    assert sagittal[0] < 0.4  # anterior is at the left
    assert coronal[0] > 0.6  # the subject's right is at the right
    assert axial[0] > 0.6
    assert max(sagittal[1], coronal[1], axial[1]) < 0.4


def test_every_image_can_be_shown_with_its_own_levels(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    for title, level in zip(COLUMN_TITLES, LEVELS.values(), strict=False):
        choose(browser, title)
        assert browser.ask(CANVASES)[0][2] == pytest.approx(255 * level, abs=6)
    browser.ask("document.querySelector('canvas').focus()")
    browser.press("6")
    browser.wait_for(f"{SHOWN} === '5'")
    assert browser.ask("document.querySelectorAll('input[name=image]')[5].checked")


def test_the_keyboard_and_the_pointer_move_the_crosshair(browser: Browser, page: Path) -> None:
    places = "[...document.querySelectorAll('output')].map(output => parseInt(output.textContent)).join()"
    browser.open(page, 1280)
    browser.wait_for(f"{SHOWN} === '2'")
    assert browser.ask(places) == "21,23,25"
    browser.ask("document.querySelector('canvas').focus()")
    browser.press("ArrowLeft")
    browser.wait_for(f"{places} === '21,24,25'")
    box = browser.ask("JSON.parse(JSON.stringify(document.querySelector('canvas').getBoundingClientRect()))")
    place = {"x": box["x"] + 0.26 * box["width"], "y": box["y"] + 0.26 * box["height"], "button": "left"}
    browser.call("Input.dispatchMouseEvent", type="mousePressed", clickCount=1, buttons=1, **place)
    browser.wait_for(f"{places} === '21,33,36'")


def test_print_shows_a_still_picture(browser: Browser, page: Path) -> None:
    heights = "['.still img', 'canvas'].map(name => document.querySelector(name).getBoundingClientRect().height > 50)"
    browser.open(page, 1280)
    browser.wait_for(f"{SHOWN} === '2'")
    assert browser.ask(heights) == [False, True]
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.ask(heights) == [True, False]
    browser.call("Emulation.setEmulatedMedia", media="")


def test_names_are_not_interpreted_and_nothing_is_loaded_from_the_web(page: Path) -> None:
    text = page.read_text()
    assert "<i>" not in text
    assert not re.search(r"(src|href)\s*=\s*[\"'](https?:)?//", text)


def test_fine_grids_are_coarsened_over_the_same_field_of_view() -> None:
    image = volume(1)
    assert coarsen(image, np.array([1.5, 2.0, 2.5])).shape == image.shape
    coarse = coarsen(image, np.array([0.5, 1.0, 2.5]))
    assert coarse.shape == (16, 35, 48)
    assert coarse.mean() == pytest.approx(image.mean(), rel=0.1)
    assert (coarse.min(), coarse.max()) == (0, 1)
    assert LEAST_SPACING_MM == 1.25


def test_without_matplotlib_the_error_says_what_to_install(
    images: VolumeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'upfield\[demo\]'"):
        viewer_section(images)
