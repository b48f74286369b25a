"""Draw real low-field scans beside heads that the recipe `physics` simulates, in three planes.

    python benchmarks/simulated.py --scans T1 T2 FLAIR --labels MAP --high SCAN --out PICTURE.jpg

`--scans` names low-field scans of the contrasts T1w, T2w and FLAIR, in this order. Beside each is a head rendered from
the label map with the same contrast, in axial slices. The last row is the high-field scan and the low field that is
made from it. Each volume is scaled by its percentiles 1 and 99. Without scans, nothing is drawn.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from planes import GAP_IN, HEIGHT_IN, LABEL_IN, draw_planes

from upfield.common.drawing import FAINT, PAPER, blank_page
from upfield.imaging.air import estimate_air
from upfield.imaging.normalisation import normalise_in_place
from upfield.imaging.volume import Volume, read_volume
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.phantoms.configuration import HeadsConfig
from upfield.sharding.phantoms.label_head import draw_head
from upfield.sharding.phantoms.label_map import LabelMap, read_label_map
from upfield.sharding.physics.acquisition import acquire, draw_acquisition
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.recipe import simulate
from upfield.sharding.physics.sequences import tissue_signals

CONTRASTS = ("T1w", "T2w", "FLAIR")
DPI = 80
AXIAL = PhysicsConfig(slice_axis=(0.0, 0.0, 1.0))


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="*", type=Path, default=[], help="real scans, T1w, T2w and FLAIR")
    parser.add_argument("--labels", type=Path, help="label map of a head")
    parser.add_argument("--high", type=Path, help="T1-weighted scan at 3 T")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("simulated.jpg"))
    arguments = parser.parse_args()
    if not arguments.scans:
        print("There is nothing to draw without scans.")
        return
    label_map = read_label_map(arguments.labels, {})
    rows = [
        (f"{contrast}, 64 mT", read_volume(scan), f"{contrast}, simulated", render(label_map, contrast, arguments.seed))
        for contrast, scan in zip(CONTRASTS, arguments.scans, strict=True)
    ]
    high = load_high(arguments.high)
    low, _ = simulate(high, AXIAL, "T1w", np.random.default_rng(arguments.seed))
    rows.append(("T1w, 3 T", high, "T1w, simulated from 3 T", low))
    width_in = 2.75 * HEIGHT_IN
    page = blank_page(2 * width_in, len(rows) * (HEIGHT_IN + LABEL_IN), PAPER, dpi=DPI)
    for number, (name, volume, other_name, other) in enumerate(rows):
        top_in = number * (HEIGHT_IN + LABEL_IN)
        for left_in, text, each in ((0.0, name, volume), (width_in, other_name, other)):
            page.text(GAP_IN + left_in, top_in + GAP_IN, text, color=FAINT)
            draw_planes(page, scaled(each), top_in + LABEL_IN, left_in)
    page.figure.savefig(arguments.out, dpi=DPI, facecolor=PAPER, pil_kwargs={"quality": 80})


def render(label_map: LabelMap, contrast: str, seed: int) -> Volume:
    """Draw a head from a label map, and measure it at 64 mT with a sequence of a contrast."""
    rng = np.random.default_rng(seed)
    whole = replace(HeadsConfig(), cut_rate=0.0, defaced_rate=0.0, stripped_rate=0.0)
    head = draw_head(label_map, GeometryConfig(), whole, rng)
    acquisition = draw_acquisition(AXIAL, contrast, rng)
    signal = head.render(tissue_signals(acquisition.sequence, acquisition.relaxations), rng)
    return acquire(signal, acquisition, rng)


def load_high(path: Path) -> Volume:
    """Read a scan, and put it on the high-field grid, scaled to [0, 1]."""
    volume = read_volume(path)
    air = estimate_air(volume.voxels)
    high = FieldResampler.around(GeometryConfig(), "crop_pad", volume, air).high_from_file(volume, air)
    normalise_in_place(high.voxels, str(path))
    return high


def scaled(volume: Volume) -> Volume:
    """Scale a volume by its percentiles 1 and 99."""
    least, most = np.percentile(volume.voxels, (1, 99))
    return replace(volume, voxels=(volume.voxels - least) / (most - least))


if __name__ == "__main__":
    main()
