"""Write self-contained HTML reports. The file holds its styles, scripts and pictures and loads nothing else."""

import base64
import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from upfield.common.files import write_text

# The script of every page that shows volumes in three planes: a report embeds it, and the service sends it.
VIEWER = Path(__file__).with_name("viewer.js")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NUMBER = re.compile(r"[+\-]?\d[\d.,]*(e[+\-]?\d+)?( ?(dB|%|s|MB))?|[+\-]?(inf|nan)|-|")
INTERVAL = re.compile(r"[+\-]?\d[\d.]* to [+\-]?\d[\d.]*")

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1e23; --faint: #59616b; --line: #d9dde2; --tint: #f4f6f8;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e4e7ea; --faint: #a0a8b1; --line: #31363d; --tint: #1d2126; --link: #79b8f5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
p { max-width: 42rem; margin: .75rem 0; }
.lead { font-size: 1.25rem; line-height: 1.35; font-weight: 600; margin-bottom: 0; }
.lead + p { margin-top: .25rem; }
a { color: var(--link); }
.scroll { overflow-x: auto; margin: 1rem 0 .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child, td.number { white-space: nowrap; }
th { font-size: .875rem; line-height: 1.3; color: var(--faint); font-weight: 600; vertical-align: bottom; }
.number { text-align: right; }
figure { margin: 1rem 0; }
figcaption { max-width: 42rem; font-size: .875rem; color: var(--faint); }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; padding: .75rem 1rem; margin: .5rem 0; background: var(--tint); border-radius: 4px;
  font: .8125rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 45rem) {
  body { padding-top: 1rem; } h1 { font-size: 1.5rem; } table { font-size: .875rem; } th { font-size: .8125rem; }
  th, td { padding-right: .6rem; } td:first-child { white-space: normal; min-width: 6rem; }
  .scroll img { max-width: none; width: 42rem; } }
@media print {
  :root { --paper: #fff; --ink: #000; --faint: #444; --line: #bbb; --tint: #f4f6f8; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; } table { font-size: 8pt; } th { font-size: 7.5pt; }
  th, td { padding: .15rem .5rem .15rem 0; } td:first-child, td.number { white-space: normal; }
  h2 { break-after: avoid; } tr, figure, .lead { break-inside: avoid; } pre { white-space: pre-wrap; } }
"""
# The page needs no other file, so the policy forbids all requests.
HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{policy}">
<link rel="icon" href="data:,">"""


@dataclass(frozen=True)
class Section:
    """A section of a report."""

    html: str
    """Body of the section, with all text escaped."""
    heading: str = ""
    """Plain text; if empty, the section continues the previous one."""
    style: str = ""
    """CSS that only this section needs."""
    script: str = ""
    """A JavaScript module that only this section needs."""


def paragraph(text: str, heading: str = "") -> Section:
    """Return a section of plain text, in which blank lines separate paragraphs."""
    parts = [part for part in re.split(r"\n\s*\n", text.strip()) if part]
    return Section("\n".join(f"<p>{escape(part)}</p>" for part in parts), heading)


def lead(result: str, details: str) -> Section:
    """Return the first section of a report: the main result in large type, and one paragraph about it."""
    return Section(f'<p class="lead">{escape(result)}</p>\n<p>{escape(details)}</p>')


def table(header: Sequence[str], rows: Sequence[Sequence[str | float]], heading: str = "") -> Section:
    """Return a table. Columns that contain only numbers or intervals are aligned to the right.

    Args:
        header: name of each column.
        rows: cells, numbers or text; the first cell of a row names the row.
        heading: heading of the section.
    """
    cells = [[f"{cell:z.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    right = [
        all(NUMBER.fullmatch(cell) or INTERVAL.fullmatch(cell) for cell in column)
        for column in zip(*cells, strict=True)
    ]
    kinds = [' class="number"' if number else "" for number in right or [False] * len(header)]
    head = "".join(f'<th scope="col"{k}>{escape(name)}</th>' for name, k in zip(header, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{escape(cell)}</td>" for cell, k in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in cells
    )
    inside = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return Section(_scrolling(inside, heading or "table"), heading)


def figure(png: bytes, alt: str, caption: str = "", heading: str = "") -> Section:
    """Return a figure whose picture is embedded in the page.

    Args:
        png: content of a PNG file.
        alt: what the picture shows, for readers who cannot see it.
        caption: text below the picture.
        heading: heading of the section.
    """
    assert png.startswith(PNG_SIGNATURE)
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    image = f'<img src="{source}" alt="{escape(alt)}" width="{width}" height="{height}">'
    below = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Section(f"<figure>\n{_scrolling(image, heading or 'picture')}{below}\n</figure>", heading)


def code_block(summary: str, text: str, heading: str = "") -> Section:
    """Return a block of code, such as a configuration, that is hidden until the reader clicks on `summary`."""
    inside = f"<summary>{escape(summary)}</summary>\n<pre><code>{escape(text)}</code></pre>"
    return Section(f"<details>\n{inside}\n</details>", heading)


def link_list(links: Mapping[str, str], heading: str = "") -> Section:
    """Return a list of links to files beside the report.

    Args:
        links: link text -> path relative to the report's folder.
        heading: heading of the section.
    """
    assert not any(path.startswith("/") for path in links.values())
    # Quoting also escapes a colon, so that a path cannot become an address with a scheme.
    items = (f'<li><a href="{escape(quote(path))}">{escape(text)}</a></li>' for text, path in links.items())
    return Section("<ul>\n" + "\n".join(items) + "\n</ul>", heading)


def _scrolling(inside: str, label: str) -> str:
    """Wrap HTML that may be wider than a phone in a box that scrolls sideways, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{inside}</div>'


def write_report(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write a report. If writing fails, no partial file is left.

    Args:
        path: the HTML file; an existing one is replaced.
        title: title of the report, as plain text.
        sections: sections in the order in which they appear.
    """
    scripts = [section.script for section in sections if section.script]
    head = HEAD.format(policy=_policy(scripts))
    style = STYLE + "".join(section.style for section in sections)
    pieces = [(f"<h2>{escape(s.heading)}</h2>\n" if s.heading else "") + s.html for s in sections]
    head = f"<head>\n{head}\n<title>{escape(title)}</title>\n<style>{style}</style>\n</head>"
    body = "\n".join(["<main>", f"<h1>{escape(title)}</h1>", *pieces, "</main>"])
    body += "".join(f'\n<script type="module">{script}</script>' for script in scripts)
    write_text(path, f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n')


def _policy(scripts: Sequence[str]) -> str:
    """Return the part of the page's security policy that permits these scripts and no other."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return f"; script-src {allowed}" if allowed else ""
