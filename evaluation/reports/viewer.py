"""A viewer of one volume in three planes, which switches between its images and needs no other file.

It shares its script with the page of the service. The viewer of nilearn shows only two images, draws sagittal slices
the other way round, and is blank in print.
"""

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common import html_page
from upfield.common.drawing import expect_matplotlib
from upfield.evaluation.measurements import CUBIC, MODEL, VolumeImages
from upfield.evaluation.reports.figures import COLUMN_TITLES, ERROR_COLOURS, NUM_IMAGES, planes_png
from upfield.imaging.resample import box_centre, resample_box

# At 1 mm, the page of a noisy volume has 17 MB, and browsers of phones refuse pictures of more than 16 million pixels.
LEAST_SPACING_MM = 1.25
JPEG_QUALITY = 80
FIRST_SHOWN = "restored"
# The limit is not the maximum, because a few voxels at misplaced edges would leave everything else black.
ERROR_PERCENTILE = 99.8
FOLDER = Path(__file__).parent
CHOICE = '<label><input type="radio" name="image"{checked}>{title}</label>'
PAGE = """<div class="viewer" id="viewer" style="--columns: {columns}">
<div class="moving">
<p>Volume {name}: the first real volume of the split, or the first of all if none is real. The keys 1 to {count}
switch between its images. Click or drag in a slice, or use the arrow keys, to move the crosshair. A is anterior, P is
posterior, and L is the subject's left.</p>
<fieldset><legend>Image</legend>{choices}</fieldset>
<div class="planes" id="planes"></div>
<p class="errors">Errors: 0 <span style="background: linear-gradient(to right, {gradient})"></span> {limit:.2f} or more.
Images: 0 is black, 1 is white, and the grey levels between them are linear.</p>
</div>
<div class="still">
{still}
</div>
</div>
<template id="plane"><article class="plane"><h3></h3><figure><canvas tabindex="0"></canvas></figure>
<label><input type="range" min="0" step="1"><output></output></label></article></template>
<script type="application/json" id="volumes">{data}</script>"""


def viewer_section(images: VolumeImages, heading: str = "") -> html_page.Section:
    """Build the section with the viewer and, for print and for readers without JavaScript, a still picture.

    Raises:
        InputError: matplotlib or Pillow is not installed.
    """
    volumes, limit = volumes_to_show(images)
    spacing_mm = np.maximum(images.spacing_mm, LEAST_SPACING_MM)
    x_mm, y_mm, _ = np.array(images.high.shape) * images.spacing_mm
    palette = error_palette()
    caption = (
        f"Volume {images.name}, through its centre. In images, 0 is black and 1 is white. Errors are black at 0 and "
        f"brightest at {limit:.2f} or more. A is anterior, P is posterior, and L is the subject's left."
    )
    body = PAGE.format(
        columns=f"{y_mm:g}fr {x_mm:g}fr {x_mm:g}fr",
        name=escape(images.name),
        count=len(volumes),
        choices="".join(
            CHOICE.format(title=title, checked=" checked" * (title == FIRST_SHOWN)) for title in COLUMN_TITLES
        ),
        gradient=", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in palette[::51]),
        limit=limit,
        still=html_page.figure(planes_png(volumes, spacing_mm), f"Volume {images.name} in three planes", caption).html,
        data=json.dumps(_mosaics(volumes, spacing_mm, palette)),
    )
    script = html_page.VIEWER.read_text(encoding="utf-8") + (FOLDER / "volumes.js").read_text(encoding="utf-8")
    return html_page.Section(body, heading, (FOLDER / "viewer.css").read_text(encoding="utf-8"), script)


def volumes_to_show(images: VolumeImages) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Return the volumes of the viewer, and the error that is drawn in the brightest colour.

    Returns:
        COLUMN_TITLES -> `(X, Y, Z)` in [0, 1], on a grid of LEAST_SPACING_MM or more. An error of 1 is the limit.
    """
    shown = [images.scan, images.restored[CUBIC], images.restored[MODEL], images.high]
    errors = [np.abs(images.restored[method] - images.high) for method in (CUBIC, MODEL)]
    limit = max(float(np.percentile(np.stack(errors), ERROR_PERCENTILE)), 1e-6)
    shown += [(error / limit).astype(np.float32) for error in errors]
    spacing_mm = np.array(images.spacing_mm)
    return {title: coarsen(image, spacing_mm) for title, image in zip(COLUMN_TITLES, shown, strict=True)}, limit


def coarsen(image: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Resample `(X, Y, Z)` to LEAST_SPACING_MM along axes with a finer spacing, and clip it to [0, 1]."""
    coarse_mm = np.maximum(spacing_mm, LEAST_SPACING_MM)
    if (coarse_mm > spacing_mm).any():
        first, second, third = (max(round(float(mm)), 1) for mm in np.array(image.shape) * spacing_mm / coarse_mm)
        image = resample_box(image, spacing_mm, box_centre(image.shape), (first, second, third), coarse_mm)
    return np.clip(image, 0, 1)


def error_palette() -> list[list[int]]:
    """Return the 256 colours of errors, each as red, green and blue in 0..255.

    Raises:
        InputError: matplotlib is not installed.
    """
    expect_matplotlib()
    from matplotlib import colormaps

    return (colormaps[ERROR_COLOURS](np.arange(256), bytes=True)[:, :3]).tolist()


def _mosaics(
    volumes: Mapping[str, NDArray[np.float32]], spacing_mm: NDArray[np.float64], palette: list[list[int]]
) -> dict[str, Any]:
    """Return what volumes.js reads."""
    x, y, z = next(iter(volumes.values())).shape
    columns = max(round((x * z / y) ** 0.5), 1)
    images = [
        {"jpeg": encode_mosaic(volume, columns)} | ({"palette": palette} if number >= NUM_IMAGES else {})
        for number, volume in enumerate(volumes.values())
    ]
    return {"shape": [x, y, z], "spacing_mm": spacing_mm.tolist(), "columns": columns, "images": images}


def encode_mosaic(volume: NDArray[np.float32], columns: int) -> str:
    """Encode a volume as one JPEG of its sagittal slices, from left to right in rows of `columns` tiles.

    Args:
        volume: `(X, Y, Z)` in [0, 1]. In a tile, the columns are Y and the rows are Z, both upwards from 0.
        columns: number of tiles in a row.

    Returns:
        The JPEG in base64.
    """
    from PIL import Image

    x, y, z = volume.shape
    rows = -(-x // columns)
    tiles = np.zeros((rows * columns, z, y), dtype=np.uint8)
    tiles[:x] = np.rint(volume * 255).swapaxes(1, 2)
    mosaic = tiles.reshape(rows, columns, z, y).swapaxes(1, 2).reshape(rows * z, columns * y)
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
