"""Single operators of `official` in several forms: depthwise convolutions, layer norm, projections, and our kernels."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from acceptance.kernel_parity import BlockShape, block_shapes, kernel_error, modules_with, results
from acceptance.measuring import median_s
from acceptance.report import Report
from upfield.common.tables import text_table
from upfield.model.blocks import ROW_MULTIPLE, next_multiple
from upfield.model.kernels.selection import PROVED

PADDED = (224, 200)
# Times within this share of each other count as equal.
NOISE = 0.02


def run(report: Report) -> None:
    """Time each operator forward and backward, in bf16."""
    shapes = block_shapes(report.pick(gpu="official", cpu="tiny"))
    batch = report.pick(gpu=4, cpu=1)
    time_depthwise(report, shapes, batch)
    time_projections(report, shapes, batch)
    time_kernels(report, shapes, batch)
    if not report.on_gpu:
        report.needs_gpu("times of depthwise convolutions, layer norms, projections and kernels")


def image_size(report: Report, shape: BlockShape) -> tuple[int, int]:
    """Return height and width at a level; on a CPU an eighth of it."""
    divisor = (1 << shape.level) * report.pick(gpu=1, cpu=8)
    return PADDED[0] // divisor, PADDED[1] // divisor


def both_ways(function: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """Return a function that computes a value and the gradients of its inputs."""
    direction = torch.randn_like(function())

    def call() -> object:
        return torch.autograd.grad(function(), inputs, direction)

    return call


def milliseconds(report: Report, function: Callable[[], object]) -> float:
    """Return the median time of a call in ms."""
    return 1e3 * median_s(function, report.device, report.pick(gpu=10, cpu=2), warm=report.pick(gpu=3, cpu=1))


def time_depthwise(report: Report, shapes: dict[BlockShape, int], batch: int) -> None:
    """Time depthwise convolutions: channels-last with cuDNN's choice and its benchmark, and PyTorch's own kernels."""
    rows: list[list[str]] = []
    totals: dict[str, float] = {}
    for shape, count in shapes.items():
        height, width = image_size(report, shape)
        hidden = next_multiple(int(shape.channels * shape.expansion), ROW_MULTIPLE)
        for channels, calls in ((shape.channels, 3 * count), (hidden, 2 * count)):
            image = torch.randn(batch, channels, height, width, device=report.device, dtype=torch.bfloat16)
            weight = torch.randn(channels, 1, 3, 3, device=report.device, dtype=torch.bfloat16, requires_grad=True)
            last = image.contiguous(memory_format=torch.channels_last).requires_grad_()
            first = image.contiguous().requires_grad_()
            forms = {
                "cuDNN, NHWC": time_convolution(report, last, weight),
                "cuDNN, NHWC, benchmark": time_convolution(report, last, weight, benchmark=True),
                "native, NCHW": time_convolution(report, first, weight, cudnn=False),
                "cuDNN or native, NCHW": time_convolution(report, first, weight),
            }
            rows.append([f"{channels} x {height} x {width}", str(calls), *(f"{ms:.3f}" for ms in forms.values())])
            for name, ms in forms.items():
                totals[name] = totals.get(name, 0.0) + calls * ms
    report.text("depthwise forward and backward, ms", text_table(["size", "calls", *totals], rows, numeric=True))
    for name, ms in totals.items():
        report.figure(f"depthwise_ms_per_step: {name}, batch {batch}", ms)


def time_convolution(
    report: Report, x: Tensor, weight: Tensor, *, cudnn: bool = True, benchmark: bool = False
) -> float:
    """Return the ms of a depthwise convolution `(B, C, H, W)` forward and backward, with these settings of cuDNN."""
    with torch.backends.cudnn.flags(enabled=cudnn, benchmark=benchmark, deterministic=False, allow_tf32=False):
        call = both_ways(lambda: F.conv2d(x, weight, padding=1, groups=len(weight)), [x, weight])
        return milliseconds(report, call)


def time_projections(report: Report, shapes: dict[BlockShape, int], batch: int) -> None:
    """Time one product for q, k, v, and one for gate and value, against separate products from the same weights."""
    rows: list[list[str]] = []
    totals = {"split": 0.0, "merged": 0.0}
    for shape, count in shapes.items():
        height, width = image_size(report, shape)
        hidden = next_multiple(int(shape.channels * shape.expansion), ROW_MULTIPLE)
        for parts, channels in ((3, shape.channels), (2, hidden)):
            x = torch.randn(batch, height, width, shape.channels, device=report.device, dtype=torch.bfloat16)
            weight = torch.randn(parts * channels, shape.channels, device=report.device, dtype=torch.bfloat16)
            x.requires_grad_()
            weight.requires_grad_()

            def split(x: Tensor = x, weight: Tensor = weight, parts: int = parts) -> Tensor:
                return torch.stack([F.linear(x, part).sum() for part in weight.chunk(parts)])

            def merged(x: Tensor = x, weight: Tensor = weight, parts: int = parts) -> Tensor:
                return torch.stack([part.sum() for part in F.linear(x, weight).chunk(parts, dim=-1)])

            times = [milliseconds(report, both_ways(form, [x, weight])) for form in (split, merged)]
            rows.append([f"{parts} x {channels} from {shape.channels}, {height} x {width}", str(count)])
            rows[-1] += [f"{ms:.3f}" for ms in times]
            for name, ms in zip(totals, times, strict=True):
                totals[name] += count * ms
    report.text("projections forward and backward, ms", text_table(["size", "calls", *totals], rows, numeric=True))
    for name, ms in totals.items():
        report.figure(f"projections_ms_per_step: {name}, batch {batch}", ms)


def time_kernels(report: Report, shapes: dict[BlockShape, int], batch: int) -> None:
    """Time each kernel inside its module against plain PyTorch, and print the line that lets `auto` use it."""
    if report.device == "cpu":
        report.needs_gpu("which kernels are faster than plain PyTorch")
        return
    proved: list[str] = []
    for kernel in PROVED:
        rows: list[list[str]] = []
        totals, right = {"plain": 0.0, "kernel": 0.0}, True
        for shape, count in shapes.items():
            height, width = image_size(report, shape)
            modules = list(modules_with(kernel, shape.build(report.device)))
            x, direction = (
                torch.randn(batch, height, width, shape.channels, device=report.device, dtype=torch.bfloat16)
                for _ in range(2)
            )
            for module in modules[:1]:
                error, least = kernel_error(module, shape.channels, (1, height, width), report.device, torch.bfloat16)
                right = right and error <= max(3 * least, 1e-2)
                call = partial(results, module, x, direction, torch.bfloat16)
                times: list[float] = []
                for fused in (False, True):
                    module.fused = fused  # pyright: ignore[reportAttributeAccessIssue]
                    times.append(milliseconds(report, call))
                rows.append([f"{shape.channels} x {height} x {width}", str(count * len(modules))])
                rows[-1] += [f"{ms:.3f}" for ms in times] + [f"{error:.2g}", f"{least:.2g}"]
                for name, ms in zip(totals, times, strict=True):
                    totals[name] += count * len(modules) * ms
        header = ["size", "calls", "plain, ms", "kernel, ms", "error", "plain error"]
        report.text(f"{kernel} forward and backward", text_table(header, rows, numeric=True))
        for name, ms in totals.items():
            report.figure(f"{kernel}_ms_per_step: {name}, batch {batch}", ms)
        faster = totals["kernel"] < (1 - NOISE) * totals["plain"]
        report.expect(f"{kernel} is right at the sizes of `official`", right)
        report.figure(f"{kernel}_is_faster", faster)
        if right and faster:
            proved.append(kernel)
    card = torch.cuda.get_device_capability()
    lines = [f'    "{kernel}": frozenset({{{card}}}),' for kernel in proved]
    report.figure("proved_here_if_check_2_passed", " ".join(line.strip() for line in lines) or "no kernel")
