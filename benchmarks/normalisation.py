"""Compare `normalisation.percentiles` with `numpy.percentile` on one volume, side by side in one run.

Prints a table with the time of each, their ratio, and whether both returned the same two values. `SCAN` is a NIfTI file
that is resampled to each grid. Without it, the volume is smoothed noise over an empty background.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.common.cores import processor_name
from upfield.imaging.normalisation import PERCENTILES, percentiles
from upfield.imaging.resample import zoom_to
from upfield.imaging.volume import read_volume

GRIDS = [("high-field grid", (179, 221, 200)), ("low-field grid", (112, 138, 40)), ("tests' grid", (20, 24, 28))]
REPEATS = 7


def best_of(function: Callable[[], object]) -> tuple[float, list[float]]:
    """Call a function a few times. Return its shortest time in seconds, and the two percentiles."""
    times: list[float] = []
    values: object = None
    for _ in range(REPEATS):
        started = time.perf_counter()
        values = function()
        times.append(time.perf_counter() - started)
    return min(times), [float(value) for value in np.asarray(values)]


def read_or_make(scan: Path | None) -> NDArray[np.float32]:
    """Read a scan `(I, J, K)`, or make a volume of which a third is background."""
    if scan:
        return read_volume(scan).voxels
    noise = np.random.default_rng(0).standard_normal((150, 180, 160))
    smooth = np.asarray(ndimage.gaussian_filter(noise, 1.5), dtype=np.float32)
    smooth[:, :60] *= np.float32(0.01)
    return smooth


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", nargs="?", type=Path, metavar="SCAN")
    volume = read_or_make(parser.parse_args().scan)
    print(f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, best of {REPEATS}")
    print(f"{'':<18} {'shape':<16} {'numpy (ms)':>11} {'percentiles (ms)':>17} {'ratio':>7}  {'values':<9}")
    for name, shape in GRIDS:
        voxels = np.ascontiguousarray(zoom_to(volume, shape))
        slow_s, right = best_of(lambda voxels=voxels: np.percentile(voxels, PERCENTILES))
        fast_s, values = best_of(lambda voxels=voxels: percentiles(voxels, PERCENTILES))
        same = "same" if np.allclose(values, right, rtol=1e-6, atol=0) else "different"
        times = f"{slow_s * 1e3:>11.2f} {fast_s * 1e3:>17.2f} {slow_s / fast_s:>7.1f}"
        print(f"{name:<18} {'x'.join(map(str, shape)):<16} {times}  {same:<9}")


if __name__ == "__main__":
    main()
