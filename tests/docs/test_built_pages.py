"""The check of the built pages finds broken links and files that a page would load from elsewhere."""

from pathlib import Path

import pytest
from built_pages import problems

GOOD = '<link rel="stylesheet" href="site.css"><h2 id="part">Part</h2><a href="#part"></a><a href="https://host/x"></a>'


def write_site(folder: Path, page: str, style: str = "") -> Path:
    (folder / "inner").mkdir()
    (folder / "site.css").write_text(style)
    (folder / "index.html").write_text(GOOD)
    (folder / "inner/page.html").write_text(page)
    return folder


@pytest.mark.parametrize("page", [GOOD.replace("site.css", "../site.css"), '<a href="../index.html#part"></a>'])
def test_a_sound_site_has_no_problems(tmp_path: Path, page: str) -> None:
    assert list(problems(write_site(tmp_path, page))) == []


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('<a href="other.html"></a>', "inner/page.html: a link leads to inner/other.html, which does not exist."),
        ('<img src="../no.png">', "inner/page.html: a link leads to no.png, which does not exist."),
        (
            '<a href="../index.html#no"></a>',
            "inner/page.html: a link leads to #no of index.html, which has no such part.",
        ),
        ('<script src="https://host/x.js">', "loads https://host/x.js, which is not a part of the site."),
        ('<link rel="preconnect" href="//host">', "loads //host, which is not a part of the site."),
        ("<p style=\"background: url('http://host/x.png')\">", "loads http://host/x.png, which"),
        ('<pre class="mermaid">', "loads https://unpkg.com/mermaid, which"),
    ],
)
def test_a_problem_is_reported_with_its_page(tmp_path: Path, page: str, problem: str) -> None:
    (found,) = problems(write_site(tmp_path, page))
    assert problem in found
    assert found.startswith("inner/page.html: ")


def test_a_style_sheet_must_not_load_a_font_from_elsewhere(tmp_path: Path) -> None:
    (found,) = problems(write_site(tmp_path, "", "@import url(https://host/font.css);"))
    assert found == "site.css: loads https://host/font.css, which is not a part of the site."


def test_a_link_that_is_broken_on_several_pages_is_told_once(tmp_path: Path) -> None:
    folder = write_site(tmp_path, '<a href="no.html"></a>')
    (folder / "inner/second.html").write_text('<a href="no.html"></a>')
    (found,) = problems(folder)
    assert found == "inner/page.html and 1 other page: a link leads to inner/no.html, which does not exist."
