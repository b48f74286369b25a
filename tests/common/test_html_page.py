import re
import sys
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from upfield.common import html_page
from upfield.common.errors import InputError
from upfield.evaluation.measurements import ExampleSlice
from upfield.evaluation.reports.figures import curves_png, distribution_png, example_slices_png
from upfield.evaluation.reports.metrics_table import metrics_table

HOSTILE = "<script>alert('$x')</script> & \"quoted\" $x"
RNG = np.random.default_rng(0)


class Page(HTMLParser):
    """The tags, attributes and text of a page; the content of scripts and styles counts as text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


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
    assert png.startswith(html_page.PNG_SIGNATURE)
    (tmp_path / "picture.png").write_bytes(png)
    return matplotlib.image.imread(tmp_path / "picture.png")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with one section of each kind, and hostile text wherever text is accepted."""
    sides = {name: {"psnr_slice": {"mean": 20.0 + i, "median": 21.0}} for i, name in enumerate(("cubic", "model"))}
    sections = [
        html_page.paragraph(f"first {HOSTILE}\n\nsecond", f"words {HOSTILE}"),
        html_page.table(["name", HOSTILE], [[HOSTILE, 1.5], ["other", "2.25 dB"]], "cells"),
        html_page.figure(example_slices_png([make_example(HOSTILE)]), HOSTILE, HOSTILE, "slices"),
        html_page.code_block(HOSTILE, f"lr: 0.0002 # {HOSTILE}", "configuration"),
        html_page.link_list({HOSTILE: f"a folder/{HOSTILE}", "evil": "javascript:alert(1)"}, "files"),
        metrics_table(sides | {"split": "test"}, "metrics"),
    ]
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    html_page.write_report(path, f"title {HOSTILE}", sections)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere(page):
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "base"}
    sources = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert len(sources) == 4
    assert not [source for source in sources if re.match(r"(?!data:)[a-z]+:|//", source)]
    assert not re.search(r"url\(|@import", html_page.STYLE)


def test_hostile_text_stays_text(page):
    assert page.open == []
    assert page.text.count(HOSTILE) == 10
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == [HOSTILE]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]


def test_every_section_is_there_under_its_heading(page):
    assert [tag for tag, _ in page.tags if tag in {"h1", "h2"}] == ["h1"] + 6 * ["h2"]
    for words in (
        "first",
        "second",
        "2.25 dB",
        "slices",
        "lr: 0.0002",
        "evil",
        "PSNR slice (dB) 20.00 21.00 21.00 21.00 - - -",
    ):
        assert words in page.text


def test_a_page_has_what_browsers_and_readers_need(page):
    attributes = [attrs for tag, attrs in page.tags if tag in {"html", "meta"}]
    assert {"lang": "en"} in attributes
    assert {"charset": "utf-8"} in attributes
    assert any(attrs.get("name") == "viewport" for attrs in attributes)
    assert "prefers-color-scheme: dark" in html_page.STYLE


def test_only_columns_of_numbers_are_aligned_right():
    html = html_page.table(["a", "b", "c"], [["x", 1.0, "+2.5 dB"], ["y", 20, "-"], ["3", 1e-9, "1,000"]]).html
    assert re.findall(r'<th scope="col"( class="number")?>', html) == ["", ' class="number"', ' class="number"']


def test_metrics_table_shows_units_signs_and_gaps():
    nothing = dict.fromkeys(("mean", "median"))
    sides = {
        "cubic": {"ssim_slice": {"mean": 0.9, "median": 0.8}, "mae": nothing, "nrmse": nothing},
        "model": {"ssim_slice": {"mean": 0.8, "median": 0.7}, "mae": nothing},
        "differences": {"model - cubic": {"ssim_slice": {"mean": -0.1, "low": -0.2, "high": 0.01, "p": 0.25}}},
    }
    text = Page(metrics_table(sides).html).text
    assert "SSIM slice 0.9000 0.8000 0.8000 0.7000 -0.1000 -0.2000 to +0.0100 0.250" in text
    assert "MAE, lower is better - - - - - - -" in text
    assert "NRMSE" not in text


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
def test_curves_need_no_certain_number_of_lines(metrics, tmp_path):
    picture = decode(curves_png(metrics), tmp_path)
    assert picture.shape == (544, 1440, 4)
    assert picture[0, 0, 3] == 0


def test_each_example_makes_the_picture_taller(tmp_path):
    one, three = (decode(example_slices_png([make_example()] * count), tmp_path) for count in (1, 3))
    assert one.shape[1] == three.shape[1]
    assert one.shape[0] < three.shape[0]


def test_equal_examples_have_no_error_to_scale(tmp_path):
    image = np.zeros((22, 20))
    assert decode(example_slices_png([ExampleSlice("same", image, image, image, image)]), tmp_path).ndim == 3


@pytest.mark.parametrize("cubic", [[20.0, np.inf, 22.0], [np.inf], []])
def test_perfect_slices_do_not_spoil_the_distribution(cubic, tmp_path):
    assert decode(distribution_png({"cubic": np.array(cubic), "model": np.full(3, 25.0)}), tmp_path).ndim == 3


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: curves_png([]), lambda: example_slices_png([make_example()]), lambda: distribution_png({})):
        with pytest.raises(InputError, match=r"pip install 'upfield\[demo\]'"):
            draw()
