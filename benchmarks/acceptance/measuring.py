"""Times on a device, and the two rates that bound every kernel: copying and multiplying."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def synchronise(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_calls(function: Callable[[], object], device: str, repeats: int, warm: int = 2) -> list[float]:
    """Return the seconds of each of `repeats` calls, after `warm` calls that do not count.

    On a GPU, the times are between events on the stream, so that a host that is ahead does not shorten them.
    """
    for _ in range(warm):
        function()
    if device == "cpu":
        times: list[float] = []
        for _ in range(repeats):
            begun = time.perf_counter()
            function()
            times.append(time.perf_counter() - begun)
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * first.elapsed_time(second) for first, second in pairwise(events)]


def median_s(function: Callable[[], object], device: str, repeats: int = 10, warm: int = 3) -> float:
    """Return the median time of a call in seconds."""
    return statistics.median(time_calls(function, device, repeats, warm))


def copy_rate(device: str) -> float:
    """Measure the rate of a copy within the device's memory, in bytes read plus bytes written per second."""
    source = torch.empty(2**31 if device == "cuda" else 2**27, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / median_s(lambda: target.copy_(source), device)


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Measure the rate of a product of two random square matrices, in operations per second."""
    size = 8192 if device == "cuda" else 1024
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_s(lambda: first @ second, device)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, divided by the norm of `expected`, both of any one shape."""
    expected = expected.double().cpu()
    return ((found.double().cpu() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def share_beyond(found: Tensor, expected: Tensor, tolerance: float) -> float:
    """Return the share of values that differ by more than `tolerance` of the largest expected value; NaN counts."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return (~((found - expected).abs() <= tolerance * expected.abs().max())).double().mean().item()


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference between two tensors of one shape."""
    return (found.double().cpu() - expected.double().cpu()).abs().max().item()
