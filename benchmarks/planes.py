"""Draw a low-field scan, its cubic interpolation and what a model makes of it, in three planes.

    python benchmarks/planes.py SCAN [MODEL] --out PICTURE.jpg

The planes pass through the middle of the image, the axial one above it. All three rows have the same intensity scale,
and the scan has voxels of its own size. Without a scan, nothing is drawn.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.drawing import FAINT, PAPER, Page, blank_page
from upfield.export.configuration import STARTER
from upfield.export.modelfile.engines import open_model_file
from upfield.export.pretrained.packaged_model import model_named
from upfield.export.scans.restoration import restore_volume
from upfield.export.scans.scan import prepare
from upfield.imaging.volume import Volume, read_volume

AXIAL_HEIGHT = 0.62
HEIGHT_IN, GAP_IN, LABEL_IN = 2.6, 0.05, 0.3


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", nargs="?", type=Path)
    parser.add_argument("model", nargs="?", type=Path, help="model file; by default the one that comes with upfield")
    parser.add_argument("--out", type=Path, default=Path("planes.jpg"))
    arguments = parser.parse_args()
    if arguments.scan is None:
        print("There is nothing to draw without a scan.")
        return
    restorer = open_model_file(arguments.model or model_named(str(STARTER)).path)
    model_input = prepare(arguments.scan, restorer.card, str(arguments.scan))
    cubic = Volume(model_input.low, np.eye(4))
    scan = read_volume(arguments.scan)
    least, most = np.percentile(scan.voxels, (1, 99))
    rows = {
        "scan": replace(scan, voxels=(scan.voxels - least) / (most - least)),
        "cubic interpolation": cubic,
        "model": replace(cubic, voxels=restore_volume(cubic.voxels, restorer, batch_size=4)),
    }
    page = blank_page(2.75 * HEIGHT_IN, len(rows) * (HEIGHT_IN + LABEL_IN), PAPER, dpi=130)
    for number, (name, volume) in enumerate(rows.items()):
        top_in = number * (HEIGHT_IN + LABEL_IN)
        page.text(GAP_IN, top_in + GAP_IN, name, color=FAINT)
        draw_planes(page, volume, top_in + LABEL_IN)
    page.figure.savefig(arguments.out, facecolor=PAPER)


def draw_planes(page: Page, volume: Volume, top_in: float, left_in: float = 0.0) -> None:
    """Draw the sagittal, coronal and axial plane of a volume side by side, all at the same scale."""
    shape, spacing_mm = np.array(volume.voxels.shape), volume.spacing_mm
    size_in = shape * spacing_mm * HEIGHT_IN / max(shape * spacing_mm)
    left_in += GAP_IN
    for axis, (name, share) in enumerate({"sagittal": 0.5, "coronal": 0.5, "axial": AXIAL_HEIGHT}.items()):
        across, up = (each for each in range(3) if each != axis)
        box_in = (left_in, top_in, size_in[across], size_in[up])
        page.image(box_in, plane(volume.voxels, axis, share), name, interpolation="nearest")
        left_in += size_in[across] + GAP_IN


def plane(voxels: NDArray[np.float32], axis: int, share: float) -> NDArray[np.float32]:
    """Return the plane of `voxels` `(I, J, K)` at a share of an axis, `(first, second)` of the other two axes."""
    return voxels.take(int(share * voxels.shape[axis]), axis)


if __name__ == "__main__":
    main()
