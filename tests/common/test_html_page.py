"""Pages are self-contained, and hostile text is not interpreted as HTML."""

import re
from html.parser import HTMLParser

import pytest

from upfield.common import html_page
from upfield.common.drawing import PAPER, blank_page, png_bytes
from upfield.evaluation.reports.metrics_table import metrics_table

HOSTILE = "<script>alert('$x')</script> & \"quoted\" $x"


class Page(HTMLParser):
    """The tags, attributes and text of a page, where the content of scripts and styles counts as text."""

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


def drawn_png():
    drawing = blank_page(2, 1, PAPER)
    drawing.text(0.1, 0.1, HOSTILE)
    return png_bytes(drawing.figure)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with one section of each kind, and with hostile text in every place for text."""
    sides = {name: {"psnr_slice": {"mean": 20.0 + i, "median": 21.0}} for i, name in enumerate(("cubic", "model"))}
    sections = [
        html_page.paragraph(f"first {HOSTILE}\n\nsecond", f"words {HOSTILE}"),
        html_page.table(["name", HOSTILE], [[HOSTILE, 1.5], ["other", "2.25 dB"]], "cells"),
        html_page.figure(drawn_png(), HOSTILE, HOSTILE, "slices"),
        html_page.code_block(HOSTILE, f"lr: 0.0002 # {HOSTILE}", "configuration"),
        html_page.link_list({HOSTILE: f"a folder/{HOSTILE}", "evil": "javascript:alert(1)"}, "files"),
        metrics_table(sides | {"split": "test"}, "metrics"),
    ]
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    html_page.write_report(path, f"title {HOSTILE}", sections)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_a_page_loads_nothing_else(page):
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "base"}
    sources = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert len(sources) == 4
    assert not [source for source in sources if re.match(r"(?!data:)[a-z]+:|//", source)]
    assert not re.search(r"url\(|@import", html_page.STYLE)


def test_hostile_text_is_not_interpreted(page):
    assert page.open == []
    assert page.text.count(HOSTILE) == 10
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == [HOSTILE]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]


def test_every_section_has_its_heading(page):
    assert [tag for tag, _ in page.tags if tag in {"h1", "h2"}] == ["h1"] + 6 * ["h2"]
    for words in (
        "first",
        "second",
        "2.25 dB",
        "slices",
        "lr: 0.0002",
        "evil",
        "PSNR slice (dB) 20.00 21.00 - - - 21.00 21.00",
    ):
        assert words in page.text


def test_a_page_has_what_browsers_and_readers_need(page):
    attributes = [attrs for tag, attrs in page.tags if tag in {"html", "meta"}]
    assert {"lang": "en"} in attributes
    assert {"charset": "utf-8"} in attributes
    assert any(attrs.get("name") == "viewport" for attrs in attributes)
    assert "prefers-color-scheme: dark" in html_page.STYLE


def test_only_columns_of_numbers_and_intervals_are_aligned_right():
    rows = [["x", 1.0, "+2.5 dB", "-0.1 to +0.25"], ["y", 20, "-", "-"], ["3", 1e-9, "1,000", "+1.00 to +2.00"]]
    html = html_page.table(["a", "b", "c", "d"], rows).html
    assert re.findall(r'<th scope="col"( class="number")?>', html) == ["", *[' class="number"'] * 3]


def test_zero_has_no_minus_sign():
    assert "-0" not in html_page.table(["name", "number"], [["zero", -0.0]]).html
