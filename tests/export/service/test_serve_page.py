"""The page in a real browser: it sends a scan, shows both volumes, and needs no mouse."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from serving import Service, ask, running, send, wait_until, write_scan

# For each canvas: the centre of its bright pixels, as shares of the width from the left and of the height from the top,
# and a checksum.
CANVASES = """[...document.querySelectorAll("canvas")].map((canvas) => {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let weight = 0, x = 0, y = 0, sum = 0;
  for (let pixel = 0; pixel < width * height; pixel++) {
    const [red, green, blue] = data.slice(4 * pixel, 4 * pixel + 3);
    sum = (sum * 31 + red + green + blue) % 1000003;
    // Coloured pixels belong to the crosshair or to a letter.
    if (red === green && green === blue && red > 127) {
      weight += 1; x += pixel % width; y += Math.floor(pixel / width);
    }
  }
  return [x / weight / width, y / weight / height, sum];
})"""
OUTPUTS = '[...document.querySelectorAll("output")].map((output) => parseInt(output.textContent))'
SHOWN = '!document.getElementById("result").hidden'
ERROR = 'document.getElementById("error").hidden ? "" : document.getElementById("error").textContent'


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tiny_model, tmp_path_factory.mktemp("work") / "w") as started:
        yield started


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark scan, stored L-P-S, with a bright block at the right, the front and the top."""
    voxels = np.random.default_rng(0).random((12, 14, 6), np.float32)
    voxels[1:4, 1:4, 4:6] += 30
    return write_scan(tmp_path_factory.mktemp("scan") / "a <b>scan.nii.gz", voxels=voxels)


def address(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}/"


def show(browser: Browser, service: Service, scan: Path, width: int = 1280) -> None:
    browser.open(address(service), width)
    browser.choose_file("#file", scan)
    browser.wait_for(SHOWN)


def test_a_scan_is_sent_and_shown_before_and_after(
    browser: Browser, service: Service, scan: Path, tmp_path: Path
) -> None:
    show(browser, service, scan)
    assert browser.complaints == []
    assert browser.ask('document.getElementById("name").textContent') == scan.name
    assert browser.ask(OUTPUTS) == [10, 12, 16]
    sums = [canvas[2] for canvas in browser.ask(CANVASES)]
    assert len(set(sums)) == 6
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.ask('document.getElementById("download").click()')
    expected = send(service.port, scan).body
    wait_until(lambda: [file.read_bytes() for file in tmp_path.glob("*.nii.gz")] == [expected])


def test_right_front_and_top_are_where_they_belong(browser: Browser, service: Service, scan: Path) -> None:
    show(browser, service, scan)
    browser.ask("""document.querySelectorAll("input[type=range]").forEach((slider) => {
      slider.value = Math.round(0.8 * slider.max);
      slider.dispatchEvent(new Event("input"));
    })""")
    browser.wait_for(f"({OUTPUTS})[0] === 15")
    sagittal, coronal, axial = browser.ask(CANVASES)[::2]
    assert sagittal[0] < 0.4  # anterior is at the left, as in all pictures
    assert min(coronal[0], axial[0]) > 0.6
    assert max(sagittal[1], coronal[1], axial[1]) < 0.4


def test_the_keyboard_suffices(browser: Browser, service: Service, scan: Path) -> None:
    browser.open(address(service), 1280)
    browser.press("Tab")
    assert browser.ask("document.activeElement.id") == "file"
    assert browser.ask("document.activeElement.matches(':focus-visible')")
    browser.choose_file("#file", scan)
    browser.wait_for(SHOWN)
    assert browser.ask("document.activeElement.id") == "name"
    before = [canvas[2] for canvas in browser.ask(CANVASES)]
    browser.press("Tab")
    assert browser.ask("document.activeElement.id") == "download"
    browser.press("Tab")
    assert browser.ask("document.activeElement.tagName") == "CANVAS"
    # In the sagittal plane: to the front, to the top, and to the next slice on the right.
    for key, expected in (("ArrowLeft", [10, 13, 16]), ("ArrowUp", [10, 13, 17]), ("PageUp", [11, 13, 17])):
        browser.press(key)
        browser.wait_for(f"String({OUTPUTS}) === '{','.join(map(str, expected))}'")
    browser.press("Tab")
    browser.press("Tab")
    assert browser.ask("document.activeElement.type") == "range"
    browser.press("ArrowLeft")
    browser.wait_for(f"({OUTPUTS})[0] === 10")
    after = [canvas[2] for canvas in browser.ask(CANVASES)]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert browser.complaints == []


def test_a_click_moves_the_crosshair(browser: Browser, service: Service, scan: Path) -> None:
    show(browser, service, scan)
    box = browser.ask("JSON.parse(JSON.stringify(document.querySelector('canvas').getBoundingClientRect()))")
    place = {"x": box["x"] + 0.26 * box["width"], "y": box["y"] + 0.26 * box["height"], "button": "left"}
    browser.call("Input.dispatchMouseEvent", type="mousePressed", clickCount=1, buttons=1, **place)
    browser.call("Input.dispatchMouseEvent", type="mouseReleased", clickCount=1, **place)
    # A quarter of 22 voxels from the front, and a quarter of 30 from the top.
    browser.wait_for(f"String({OUTPUTS}) === '10,17,23'")


def test_error_messages_are_shown(browser: Browser, service: Service, scan: Path, tmp_path: Path) -> None:
    series = write_scan(tmp_path / "series.nii.gz", shape=(12, 14, 6, 2))
    browser.open(address(service), 1280)
    browser.choose_file("#file", series)
    browser.wait_for(ERROR)
    sentence = "expected 3 dimensions, found 4 (shape (12, 14, 6, 2)). Extract one volume first."
    assert browser.ask(ERROR) == f"Series.nii.gz: {sentence}"
    assert not browser.ask(SHOWN)
    # The next scan is still accepted.
    browser.choose_file("#file", scan)
    browser.wait_for(SHOWN)
    assert browser.ask(ERROR) == ""


def test_progress_is_shown_and_can_be_stopped(browser: Browser, service: Service, scan: Path) -> None:
    service.engine.gate.clear()
    browser.open(address(service), 1280)
    browser.choose_file("#file", scan)
    browser.wait_for('document.getElementById("state").textContent === "Restoring: 0 of 19 slices"')
    browser.ask('document.getElementById("cancel").click()')
    browser.wait_for('document.getElementById("working").hidden')
    service.engine.gate.set()
    wait_until(lambda: b"upfield_scans 0.0" in ask(service.port, "/metrics").body)
    assert not browser.ask(SHOWN)


def test_the_page_asks_for_the_token(browser: Browser, tiny_model: Path, scan: Path, tmp_path: Path) -> None:
    with running(tiny_model, tmp_path / "w", token="a-token") as service:
        browser.open(address(service), 1280)
        browser.wait_for('document.activeElement.id === "token"')
        browser.choose_file("#file", scan)
        browser.wait_for(ERROR)
        assert "token" in browser.ask(ERROR)
        for given in ("another", "a-token"):
            browser.ask('document.getElementById("token").select()')
            browser.call("Input.insertText", text=given)
            browser.press("Enter")
            if given == "another":
                browser.wait_for(f"{ERROR}.includes('This token was refused')")
        browser.wait_for('document.getElementById("token-line").hidden')
        assert browser.ask(ERROR) == ""
        browser.ask('document.getElementById("token-use").click()')
        browser.choose_file("#file", scan)
        browser.wait_for(SHOWN)
        about = browser.ask('document.getElementById("about").textContent')
        assert about.count("Model:") == 1


def test_a_phone_shows_the_page_without_scrolling_sideways(browser: Browser, service: Service, scan: Path) -> None:
    show(browser, service, scan, width=390)
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    overflowing = browser.ask(
        """[...document.querySelectorAll("main *")].filter((node) => node.getBoundingClientRect().right > 390).length"""
    )
    assert overflowing == 0
    assert browser.complaints == []
    browser.open(f"{address(service)}docs", 390)
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    assert browser.complaints == []
