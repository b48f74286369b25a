"""Measure what `data.augment.degrade` costs, as a share of a training step on the same cores, side by side in one run.

A training step is the forward pass, loss and backward pass in bf16, without the optimizer. It runs on all cores that
the process may use. The samples are degraded by one thread, as in training without loader threads, so `share` is what a
step loses on a CPU. Processor time is measured, because other processes may share the cores, and a step is assumed to
keep all its threads busy, so `share` is not too small. The ranges are those that the README shows. The best of
`--repeats` counts, in ms per slice.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.common.allocator import keep_freed_memory
from upfield.common.cores import processor_name
from upfield.distributed.configuration import AugmentConfig, DegradeConfig
from upfield.distributed.samples.augment import augment_pair
from upfield.model.amir import Amir, AmirConfig
from upfield.model.configuration import LossConfig
from upfield.model.losses import restoration_loss

CASES = (
    ("tiny", (128, 128), 0),
    ("tiny", (128, 128), 2),
    ("tiny", (221, 200), 0),
    ("official", (128, 128), 0),
    ("official", (221, 200), 0),
)
DEGRADE = DegradeConfig((0.8, 1.25), (0, 0.4), (0, 0.15), (0, 1), (0, 0.03))
SLICES = 50


def best_ms(function: Callable[[], object], repeats: int) -> float:
    """Return the shortest processor time of a call, in ms."""
    times: list[float] = []
    for _ in range(repeats + 1):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times[1:]) * 1e3


def training_step(preset: str, low: NDArray[np.float16], high: NDArray[np.float16]) -> Callable[[], None]:
    """Return a function that computes the gradients for slices `(N, 1 + 2*context, H, W)` and `(N, 1, H, W)`."""
    network = Amir(replace(AmirConfig.preset(preset), in_channels=low.shape[1])).train()
    inputs, targets = (torch.from_numpy(images.astype(np.float32)) for images in (low, high))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            restored, load = network(inputs)[:2]
        restoration_loss(restored, targets, load, LossConfig())[0].backward()
        network.zero_grad(set_to_none=True)

    return step


def augmentation(
    config: AugmentConfig, low: NDArray[np.float16], high: NDArray[np.float16], keys: Iterator[int]
) -> Callable[[], None]:
    """Return a function that augments one pair many times, each time with another key."""

    def augment() -> None:
        for _ in range(SLICES):
            augment_pair(low, high, config, (0, 0, next(keys)))

    return augment


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2, help="slices of a training step")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng, keys = np.random.default_rng(0), count()
    print(f"{processor_name()}, {torch.get_num_threads()} threads, best of {arguments.repeats}, ms per slice")
    print(f"{'preset':<10} {'pixels':<10} {'context':>7} {'step':>9} {'unchanged':>10} {'degraded':>9} {'share':>7}")
    for preset, size, context in CASES:
        low = rng.random((arguments.batch, 1 + 2 * context, *size)).astype(np.float16)
        high = rng.random((arguments.batch, 1, *size)).astype(np.float16)
        step = best_ms(training_step(preset, low, high), arguments.repeats)
        step /= arguments.batch * torch.get_num_threads()
        configs = AugmentConfig(shift_pixels=1), AugmentConfig(shift_pixels=1, degrade=DEGRADE)
        plain, degraded = (
            best_ms(augmentation(config, low[0], high[0], keys), arguments.repeats) / SLICES for config in configs
        )
        times = f"{step:>9.1f} {plain:>10.2f} {degraded:>9.2f} {(degraded - plain) / step:>7.2%}"
        print(f"{preset:<10} {'x'.join(map(str, size)):<10} {context:>7} {times}", flush=True)


if __name__ == "__main__":
    main()
