"""Compare resampling by one matrix per axis with `scipy.ndimage.zoom` on one volume, side by side in one run.

Prints a table with the time of each, their ratio, and the largest difference as a share of the value range.
"""

import os
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from upfield.common.cores import processor_name
from upfield.imaging.resample import zoom_to

CASES = [
    ("low field up", (112, 138, 40), (179, 221, 200)),
    ("high field down", (179, 221, 200), (112, 138, 40)),
    ("IXI to the high-field grid", (150, 256, 256), (179, 221, 200)),
]
REPEATS = 3


def best_of(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Call a function a few times. Return its shortest time in seconds, and its result."""
    times: list[float] = []
    result = np.empty(0)
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - started)
    return min(times), result


def main() -> None:
    """Print the table."""
    print(f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, best of {REPEATS}")
    print(f"{'':<28} {'scipy (s)':>10} {'matrices (s)':>13} {'ratio':>7} {'difference':>11}")
    rng = np.random.default_rng(0)
    for name, shape, target in CASES:
        volume = np.asarray(ndimage.gaussian_filter(rng.standard_normal(shape), 1.5), dtype=np.float32)
        factors = [new / old for new, old in zip(target, shape, strict=True)]
        zoom_to(volume, target)  # Only the first call for a pair of sizes makes the matrices.
        fast_s, fast = best_of(lambda volume=volume, target=target: zoom_to(volume, target))
        slow_s, slow = best_of(lambda volume=volume, factors=factors: ndimage.zoom(volume, factors, order=3))
        difference = np.abs(fast - slow).max() / np.ptp(slow)
        print(f"{name:<28} {slow_s:>10.3f} {fast_s:>13.4f} {slow_s / fast_s:>7.1f} {difference:>11.1e}")


if __name__ == "__main__":
    main()
