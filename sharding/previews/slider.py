"""Draw a page of pairs of volumes with sliders through their slices, as one HTML file that loads nothing else."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.drawing import COLOURS, FAINT, INK, LETTER, PAPER, SIDES, upright
from upfield.common.errors import InputError
from upfield.sharding.previews.overlay import draw_overlay
from upfield.sharding.previews.selection import read_slice
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import VolumePair

# At this quality, a default page of 8 pairs of 179 slices takes about 12 MB; PNG would take 70.
QUALITY = 60
KIND_COLOURS = {"real": COLOURS[0], "synthetic": COLOURS[1]}
CAPTIONS = {"contour": "edges of the high field on the low", "checkerboard": "tiles of the high field on the low"}

STYLE = f"""
:root {{ color-scheme: dark; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; padding: 1.25rem 1.5rem 3rem; background: {PAPER}; color: {INK};
  font: 0.9375rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.0625rem; font-weight: 500; margin: 0; }}
h2 {{ font-size: 1.0625rem; font-weight: 600; margin: 0; }}
p, figcaption, .turn span {{ color: {FAINT}; }}
p {{ margin: .25rem 0 0; }}
section {{ margin: 1.5rem 0 0; padding: 1rem 0 0; border-top: 1px solid #2b3038; }}
.turn {{ display: flex; align-items: center; gap: .75rem; margin: .5rem 0 1rem; }}
.turn input {{ flex: 1; max-width: 40rem; accent-color: {COLOURS[0]}; }}
.turn output {{ min-width: 4em; font-variant-numeric: tabular-nums; }}
.pairs {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
.pair {{ flex: 1 1 38rem; max-width: 60rem; min-width: 0; }}
.pair header {{ display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem .75rem; margin: 0 0 .375rem; }}
.kind {{ padding: 0 .5rem; border-radius: 2px; color: {PAPER}; font-weight: 600; }}
code {{ font: 0.8125rem/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
.row {{ display: flex; gap: .375rem; }}
figure {{ flex: 1; min-width: 0; margin: 0; }}
figcaption {{ margin: .1875rem 0 0; font-size: .8125rem; }}
.stack {{ position: relative; background: #000; }}
.stack img {{ display: block; width: 100%; height: auto; }}
.stack img + img {{ position: absolute; inset: 0; }}
.stack span {{ position: absolute; top: .125rem; left: .375rem; color: {LETTER}; font-size: .8125rem; }}
.stack span + span {{ left: auto; right: .375rem; }}
img:not([src]) {{ visibility: hidden; }}
img.whole {{ display: block; max-width: 100%; height: auto; }}
@media screen and (max-width: 45rem) {{ .row {{ flex-wrap: wrap; }} figure {{ flex: 1 1 40%; }} }}
@media print {{ :root {{ color-scheme: light; }} body {{ padding: 0; background: #fff; color: #000; }}
  p, figcaption {{ color: #444; }} .turn {{ display: none; }}
  .pair {{ break-inside: avoid; max-width: none; }} }}
"""

SCRIPT = """
"use strict";
const {images, subjects} = JSON.parse(document.getElementById("slices").textContent);
const sections = [...document.querySelectorAll("section.subject")];
let active = sections[0];

function draw(image, number) {
  if (number === undefined) image.removeAttribute("src");
  else image.src = "data:image/webp;base64," + images[number];
}

function turn(section) {
  const at = Number(section.querySelector("input").value);
  section.querySelectorAll(".pair").forEach((pair, number) => {
    const slice = subjects[sections.indexOf(section)].pairs[number][at] || {key: "no such slice"};
    pair.querySelector("code").textContent = slice.key;
    for (const image of pair.querySelectorAll("img")) draw(image, slice[image.className]);
  });
  section.querySelector("output").textContent = "x = " + subjects[sections.indexOf(section)].x[at];
}

for (const section of sections) {
  section.querySelector("input").addEventListener("input", () => turn(section));
  for (const event of ["pointerenter", "focusin"]) section.addEventListener(event, () => { active = section; });
  turn(section);
}

document.addEventListener("keydown", (event) => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  // A slider with the focus already follows the arrow keys.
  if (!step || event.target.type === "range" || event.altKey || event.ctrlKey || event.metaKey) return;
  const slider = active.querySelector("input");
  slider.value = Number(slider.value) + step;
  turn(active);
  event.preventDefault();
});
"""


@dataclass
class _ImageStore:
    """Encoded images, each kept once, because all pairs of a subject share their high field."""

    texts: list[str] = field(default_factory=list)
    numbers: dict[bytes, int] = field(default_factory=dict)

    def add(self, pixels: NDArray[np.uint8]) -> int:
        """Encode `(Y, Z)` grey or `(Y, Z, 4)` RGBA in 0..255 and return the number of the image."""
        encoded = encode_webp(pixels)
        if encoded not in self.numbers:
            self.numbers[encoded] = len(self.texts)
            self.texts.append(base64.b64encode(encoded).decode("ascii"))
        return self.numbers[encoded]


def encode_webp(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a sagittal slice as WebP, with the top of the head up.

    Args:
        pixels: `(Y, Z)` grey or `(Y, Z, 4)` RGBA in 0..255.

    Raises:
        InputError: Pillow is not installed, or cannot write WebP.
    """
    try:
        from PIL import Image, features
    except ImportError as error:
        raise InputError("Pillow, which encodes slices, is not installed. Run: pip install 'upfield[demo]'") from error
    if not features.check("webp"):
        raise InputError("The installed Pillow cannot write WebP. Run: pip install -U pillow")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(upright(pixels))).save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def draw_slider(split: ShardSplit, pairs: Iterable[VolumePair], title: str, overlay: str, histograms_png: bytes) -> str:
    """Draw a page with a section per subject: a slider, and the subject's pairs as low field, high field and overlay.

    Args:
        split: split with the samples.
        pairs: pairs to show; those of one subject must follow each other.
        title: first line of the page.
        overlay: `contour`, `checkerboard`, or `none` to leave that picture out.
        histograms_png: a picture for the end of the page.

    Returns:
        The page as HTML.

    Raises:
        InputError: Pillow is not installed, or cannot write WebP.
    """
    images = _ImageStore()
    subjects: list[dict[str, Any]] = []
    sections: list[str] = []
    size = split.high_shape[1:]
    for _, group in groupby(pairs, key=lambda pair: (pair.first.cohort, pair.first.subject)):
        members = list(group)
        places = sorted({key.x for pair in members for key in pair.keys})
        slices = [_encode_pair(split, pair, overlay, images) for pair in members]
        subjects.append({"x": places, "pairs": [[by_x.get(x) for x in places] for by_x in slices]})
        sections.append(_section(members, len(places), overlay, size))
    picture = base64.b64encode(histograms_png).decode("ascii")
    return _page(title, sections, {"images": images.texts, "subjects": subjects}, picture)


def _encode_pair(split: ShardSplit, pair: VolumePair, overlay: str, images: _ImageStore) -> dict[int, dict[str, Any]]:
    """Encode a pair; return the sample's key and its image numbers for each slice number `x`."""
    slices: dict[int, dict[str, Any]] = {}
    for key, sample in zip(pair.keys, pair.samples, strict=True):
        item = read_slice(split, sample)
        low, high = (np.rint(image * 255).astype(np.uint8) for image in (item.centre, item.high))
        slices[key.x] = {"key": str(key), "low": images.add(low), "high": images.add(high)}
        if overlay != "none":
            slices[key.x]["overlay"] = images.add(draw_overlay(overlay, item.high))
    return slices


def _section(pairs: list[VolumePair], num_slices: int, overlay: str, size: tuple[int, ...]) -> str:
    first = pairs[0].first
    shown = "\n".join(_panel(pair, overlay, size) for pair in pairs)
    return f"""<section class="subject">
<h2>{escape(first.cohort)}, {escape(first.subject)}</h2>
<div class="turn"><span>left</span><input type="range" min="0" max="{num_slices - 1}" value="{num_slices // 2}"
 aria-label="slice of {escape(first.subject)}"><span>right</span><output></output></div>
<div class="pairs">
{shown}
</div>
</section>"""


def _panel(pair: VolumePair, overlay: str, size: tuple[int, ...]) -> str:
    kind = pair.first.kind
    stacks: dict[str, tuple[str, ...]] = {"low field": ("low",), "high field": ("high",)}
    if overlay != "none":
        stacks[CAPTIONS[overlay]] = ("low", "overlay")
    figures = "".join(_figure(caption, layers, size) for caption, layers in stacks.items())
    return f"""<div class="pair">
<header><span class="kind" style="background: {KIND_COLOURS[kind]}">{kind}</span><code></code></header>
<div class="row">{figures}</div>
</div>"""


def _figure(caption: str, layers: tuple[str, ...], size: tuple[int, ...]) -> str:
    layer = '<img class="{}" width="{}" height="{}" alt="{}">'
    stack = "".join(layer.format(name, *size, caption) for name in layers)
    stack += "".join(f'<span aria-hidden="true">{side}</span>' for side in SIDES["sagittal"])
    return f'<figure><div class="stack">{stack}</div><figcaption>{caption}</figcaption></figure>'


def _page(title: str, sections: list[str], slices: dict[str, Any], histograms: str) -> str:
    # Only this script may run, whatever a key contains. `<` is escaped so that no key can close the data element.
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    data = json.dumps(slices, separators=(",", ":")).replace("<", "\\u003c")
    body = "\n".join(sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>Sagittal slices: A is anterior, P is posterior. A slider moves all pairs of its subject. The arrow keys move the
slider under the pointer.</p>
<noscript><p>The sliders need JavaScript.</p></noscript>
{body}
<section>
<img class="whole" src="data:image/png;base64,{histograms}" alt="intensities per cohort and kind">
</section>
<script type="application/json" id="slices">{data}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
