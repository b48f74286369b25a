"""Compare heads that are rendered from label maps with real scans, and their cost with that of the template's phantoms.

Prints two tables, and draws the heads and the scans in three planes if `--out` names a picture:
    python benchmarks/heads.py --labels 'MAPS/*.nii.gz' --scans SCAN... --out docs/pictures/guides/heads-from-labels.jpg
"""

import argparse
import os
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.common.cores import processor_name
from upfield.common.drawing import INK, PAPER, blank_page
from upfield.imaging.air import estimate_air
from upfield.imaging.head_mask import head_mask
from upfield.imaging.volume import read_volume
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.phantoms.anatomy import TemplateGrid, blur_lines, load_template, make_tissues, measure
from upfield.sharding.phantoms.configuration import HeadsConfig
from upfield.sharding.phantoms.label_head import draw_head, high_field, low_field
from upfield.sharding.phantoms.label_map import LabelMap, read_label_map
from upfield.sharding.phantoms.subject_writer import draw_subject
from upfield.sharding.physics.configuration import PhysicsConfig

MAPS = "../shared/data/labels/*.nii.gz"
GEOMETRY = GeometryConfig()
REPEATS = 3
COLUMNS = 3
# The picture has one pixel per voxel.
DPI = 100
GAP = 4
LARGEST_BYTES = 300_000
# White matter is the bright part of what lies below this depth. Scalp and skull are those of the head's upper part.
DEEP_MM, WHITE_PERCENTILE, TOP_MM = 28.0, 85, 90.0
SCALP_MM, SKULL_MM = (2.0, 6.0), ((6.0, 8.0), (8.0, 10.0), (10.0, 12.0), (12.0, 14.0))


def draw(label_map: LabelMap, seed: int) -> NDArray[np.float32]:
    """Draw one head from a map and measure it at high field, `(X, Y, Z)`."""
    rng = np.random.default_rng(seed)
    return high_field(draw_head(label_map, GEOMETRY, HeadsConfig(), rng), HeadsConfig(), rng)[0].voxels


def load_scan(path: Path) -> NDArray[np.float32]:
    """Read a scan and put it on the high-field grid, `(X, Y, Z)`."""
    volume = read_volume(path)
    air = estimate_air(volume.voxels)
    return FieldResampler.around(GEOMETRY, "crop_pad", volume, air).high_from_file(volume, air).voxels


def levels(voxels: NDArray[np.float32]) -> dict[str, float]:
    """Measure the brightest percentile, scalp and skull of `(X, Y, Z)`, relative to white matter."""
    head = head_mask(np.clip(voxels / np.percentile(voxels, 99), 0, 1))[::2, ::2, ::2]
    depth_mm = np.asarray(ndimage.distance_transform_edt(head, sampling=2.0))
    small = voxels[::2, ::2, ::2]
    white = float(np.percentile(small[depth_mm > DEEP_MM], WHITE_PERCENTILE))
    top = np.flatnonzero(head.any(axis=(0, 1)))[-1] - round(TOP_MM / 2)
    upper = np.zeros(head.shape, np.bool_)
    upper[:, :, max(top, 0) :] = True

    def median(least_mm: float, most_mm: float) -> float:
        shell = upper & (depth_mm > least_mm) & (depth_mm <= most_mm)
        return float(np.median(small[shell])) / white if shell.any() else float("nan")

    return {
        "brightest 1%": float(np.percentile(voxels, 99)) / white,
        "scalp": median(*SCALP_MM),
        "skull": min(median(*shell) for shell in SKULL_MM),
    }


def best_of(function: Callable[[], Any]) -> float:
    """Return the shortest CPU time in seconds of a few calls."""
    times: list[float] = []
    for _ in range(REPEATS):
        # Other programs use the machine too.
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def print_costs(label_map: LabelMap, path: Path) -> None:
    """Print the time for both fields of one head, from a label map and from the template."""
    grid = TemplateGrid(GEOMETRY.high_shape, GEOMETRY.high_spacing_mm)
    low_grid = TemplateGrid(GEOMETRY.low_shape, GEOMETRY.low_spacing_mm)
    template = load_template()

    def from_map() -> None:
        rng = np.random.default_rng(0)
        head = draw_head(label_map, GEOMETRY, HeadsConfig(), rng)
        high_field(head, HeadsConfig(), rng)
        low_field(head, PhysicsConfig(), rng, GEOMETRY)

    def from_template() -> None:
        rng = np.random.default_rng(0)
        subject = draw_subject(rng)
        tissues = make_tissues(rng, grid, template, subject.morphology)
        measure(rng, tissues, grid, subject.high_contrast, subject.high_scanner)
        lines = blur_lines(low_grid, grid, subject.low_blur)
        measure(rng, tissues, grid, subject.low_contrast, subject.low_scanner, lines)

    print(f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, best of {REPEATS}")
    reference_s = best_of(from_template)
    print(f"{'':<34} {'CPU (s)':>9} {'ratio':>6}")
    for name, function in (
        ("template, both fields", from_template),
        ("label map, both fields", from_map),
        ("reading a label map", lambda: read_label_map(path, {})),
    ):
        time_s = reference_s if function is from_template else best_of(function)
        print(f"{name:<34} {time_s:>9.2f} {time_s / reference_s:>6.2f}")


def print_levels(heads: list[dict[str, float]], scans: dict[str, dict[str, float]]) -> None:
    """Print the range over the drawn heads, and the values of the scans."""
    print(f"{'relative to white matter':<34} " + " ".join(f"{name:>14}" for name in heads[0]))
    for name, share in (("lowest head", 0), ("median head", 50), ("highest head", 100)):
        values = (np.nanpercentile([head[key] for head in heads], share) for key in heads[0])
        print(f"{name:<34} " + " ".join(f"{value:>14.2f}" for value in values))
    for name, scan in scans.items():
        print(f"{name:<34} " + " ".join(f"{value:>14.2f}" for value in scan.values()))


def save_picture(out: Path, volumes: dict[str, NDArray[np.float32]]) -> None:
    """Draw each volume `(X, Y, Z)` in three planes, and write a JPEG below the limit of size."""
    size_x, size_y, size_z = GEOMETRY.high_shape
    width, height = size_y + 2 * size_x + 3 * GAP, size_y + GAP
    rows = -(-len(volumes) // COLUMNS)
    page = blank_page(COLUMNS * width / DPI, rows * height / DPI, PAPER, DPI)
    for place, (name, voxels) in enumerate(volumes.items()):
        left, top = place % COLUMNS * width, place // COLUMNS * height
        shown = voxels / np.percentile(voxels[voxels > voxels.mean() / 3], 99.3)
        planes = {
            "sagittal": shown[size_x // 2 + 5],
            "coronal": shown[:, size_y // 2],
            "axial": shown[:, :, int(0.6 * size_z)],
        }
        for plane, pixels in planes.items():
            width_in, height_in = (size / DPI for size in pixels.shape)
            page.image((left / DPI, top / DPI, width_in, height_in), pixels, plane, interpolation="nearest")
            left += pixels.shape[0] + GAP
        page.text((place % COLUMNS * width + 4) / DPI, (top + size_z + 4) / DPI, name, 9, color=INK)
    for quality in range(90, 20, -5):
        page.figure.savefig(out, dpi=DPI, facecolor=PAPER, pil_kwargs={"quality": quality})
        if out.stat().st_size <= LARGEST_BYTES:
            return


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default=MAPS, help="pattern of label maps")
    parser.add_argument("--scans", type=Path, nargs="*", default=[], help="real T1-weighted scans")
    parser.add_argument("--heads", type=int, default=12, help="number of heads to draw")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first head")
    parser.add_argument("--out", type=Path, help="picture to write, a .jpg")
    options = parser.parse_args()
    paths = sorted(Path(name) for name in glob(options.labels))
    if not paths:
        print(f"No label maps match {options.labels}. Name some with --labels.")
        return
    volumes: dict[str, NDArray[np.float32]] = {}
    for number in range(options.heads):
        label_map = read_label_map(paths[number % len(paths)], {})
        if number == 0:
            print_costs(label_map, paths[0])
        volumes[f"rendered {number + 1}"] = draw(label_map, options.seed + number)
    scans = {f"real: {path.name.removesuffix('.gz').removesuffix('.nii')}": load_scan(path) for path in options.scans}
    print_levels([levels(voxels) for voxels in volumes.values()], {name: levels(scan) for name, scan in scans.items()})
    if options.out:
        save_picture(options.out, volumes | scans)


if __name__ == "__main__":
    main()
