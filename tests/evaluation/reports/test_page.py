"""The report works in a real browser: complete, without errors, readable on a phone."""

import json
import re
from pathlib import Path

import matplotlib.image
import pytest
from browser import Browser

from upfield.evaluation.evaluate import main
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.reports.report_content import TrainingRecord

PHONE, DESKTOP = 390, 1200
READY = "document.getElementById('viewer').dataset.shown === '2'"


@pytest.fixture(scope="module")
def report(tiny_run: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report"
    arguments = [str(tiny_run), "--shards", str(tiny_shards), "--out", str(out), "--against", str(tiny_run)]
    assert main(arguments) == 0
    return out / "report.html"


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_renders_without_errors(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width)
    browser.wait_for(READY)
    assert browser.complaints == []
    assert browser.ask("document.querySelector('h1').innerText") == "Evaluation of run, split test"
    sizes = browser.ask("[...document.images].map(image => image.naturalWidth)")
    assert len(sizes) == 7
    assert min(sizes) > 0


def test_the_browser_reports_errors(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><link rel=icon href='data:,'><script>console.error('spoilt')</script>")
    browser.open(page, DESKTOP)
    assert browser.complaints == ["['spoilt']"]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width)
    # The test does not compare with innerWidth, because on a phone it grows with content that is too wide.
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.body.scrollWidth") <= width
    edges = "[...document.querySelectorAll('main > *')].map(e => e.getBoundingClientRect().right)"
    assert max(browser.ask(edges)) <= width
    sizes = "[...document.querySelectorAll('p, td, th')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert min(browser.ask(sizes)) >= 13


def test_a_phone_shows_the_gain_first_and_without_scrolling(browser: Browser, report: Path) -> None:
    browser.open(report, PHONE)
    assert re.search(
        r"(gains|is worse than cubic interpolation by) \d+\.\d\d dB",
        browser.ask("document.querySelector('h1 + p').innerText"),
    )
    head = "[...document.querySelector('table').rows[0].cells].find(cell => cell.innerText === 'model - cubic')"
    assert browser.ask(f"{head}.getBoundingClientRect().right") <= PHONE


def test_the_page_loads_nothing_from_the_web(report: Path) -> None:
    text = report.read_text()
    assert not re.search(r"(src|href)\s*=\s*(&quot;|\"|')(https?:)?//", text)
    assert "default-src 'none'" in text
    assert "script-src 'sha256-" in text


def test_the_page_contains_all_results(report: Path) -> None:
    text = report.read_text()
    for metric in METRICS.values():
        assert f"<td>{metric.name}</td>" in text
    for heading in (
        "Cubic interpolation and the model",
        "Comparison with the other model",
        "PSNR per slice",
        "Best, median, worst slice",
        "In three planes",
        "Per cohort, real and synthetic",
        "Where might the model have invented structure?",
        "Training",
        "Definitions",
        "Data and machine",
    ):
        assert f"<h2>{heading}</h2>" in text
    tree = json.loads((report.parent / "metrics.json").read_text())
    assert tree["about"]["data_sha256"] in text
    assert tree["about"]["models"]["model"]["sha256"] in text
    assert text.count("Trust maps") == 2
    assert tree["worst_slices"]["inconsistency"][0]["key"] in text
    assert "One subject has neither an interval nor a p-value" in text
    assert matplotlib.image.imread(report.parent / "slices.png").ndim == 3


def test_a_model_file_has_no_training_curve(tmp_path: Path, tiny_run: Path) -> None:
    assert TrainingRecord.of(tmp_path / "model.onnx", "lr: 1").log == []
    record = TrainingRecord.of(tiny_run, "")
    assert [line["step"] for line in record.log if line["event"] == "validation"] == [2]


def test_the_report_of_a_model_file_has_its_configuration(tiny_model: Path, tiny_shards: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_model), "--shards", str(tiny_shards), "--out", str(tmp_path / "o"), "--perturb", "false"]
    assert main(arguments) == 0
    text = (tmp_path / "o" / "report.html").read_text()
    assert "preset: tiny" in text
    assert "A model file does not contain the training curve" in text
    assert "Disagreement" not in text
    assert text.count("Trust maps") == 1
