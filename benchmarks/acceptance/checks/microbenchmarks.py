"""Single operators of `official` in several forms: depthwise convolutions, layer norm, projections, and our kernels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acceptance.kernel_parity import BlockShape, Comparison, block_errors, block_shapes, use_kernel
from acceptance.measuring import median_s
from acceptance.report import Report
from upfield.common.tables import text_table
from upfield.model.kernels.selection import PROVED, has_triton

PADDED = (224, 200)
# Times of blocks within this share of each other count as equal.
NOISE = 0.01


def run(report: Report) -> None:
    """Time each operator forward and backward, in bf16."""
    shapes = block_shapes(report.pick(gpu="official", cpu="tiny"))
    batch = report.pick(gpu=4, cpu=1)
    time_depthwise(report, shapes, batch)
    time_projections(report, shapes, batch)
    time_paths(report, shapes, batch)
    time_layer_norm(report, shapes, batch)
    time_kernels(report, shapes, batch)
    if not report.on_gpu:
        report.needs_gpu("times of depthwise convolutions, layer norms, projections and kernels")


def image_size(report: Report, shape: BlockShape) -> tuple[int, int]:
    """Return height and width at a level; on a CPU an eighth of it."""
    divisor = (1 << shape.level) * report.pick(gpu=1, cpu=8)
    return PADDED[0] // divisor, PADDED[1] // divisor


def both_ways(function: Callable[[], Tensor | list[Tensor]], inputs: list[Tensor]) -> Callable[[], object]:
    """Return a function that computes values and the gradients of their inputs."""
    values = function()
    directions = [torch.randn_like(value) for value in ([values] if isinstance(values, Tensor) else values)]

    def call() -> object:
        values = function()
        return torch.autograd.grad([values] if isinstance(values, Tensor) else values, inputs, directions)

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
        for channels, calls in ((shape.channels, 3 * count), (shape.hidden, 2 * count)):
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
            if report.on_gpu and has_triton():
                forms["ours, Triton"] = time_our_depthwise(report, last, weight)
            rows.append([f"{channels} x {height} x {width}", str(calls), *(f"{ms:.3f}" for ms in forms.values())])
            for name, ms in forms.items():
                totals[name] = totals.get(name, 0.0) + calls * ms
    report.text("depthwise forward and backward, ms", text_table(["size", "calls", *totals], rows, numeric=True))
    report.figure(f"depthwise_ms_per_step, batch {batch}", totals)


def time_convolution(
    report: Report, x: Tensor, weight: Tensor, *, cudnn: bool = True, benchmark: bool = False
) -> float:
    """Return the ms of a depthwise convolution `(B, C, H, W)` forward and backward, with these settings of cuDNN."""
    settings = torch.backends.cudnn
    settings.enabled, settings.benchmark = cudnn, benchmark
    try:
        call = both_ways(lambda: F.conv2d(x, weight, padding=1, groups=len(weight)), [x, weight])
        return milliseconds(report, call)
    finally:
        settings.enabled, settings.benchmark = True, False


def time_our_depthwise(report: Report, image: Tensor, weight: Tensor) -> float:
    """Return the ms of our kernel for `image` `(B, C, H, W)`, channels-last in memory, and `weight` `(C, 1, 3, 3)`."""
    from upfield.model.kernels.depthwise import depthwise

    inputs = [image.permute(0, 2, 3, 1).detach().requires_grad_(), weight.flatten(1).detach().requires_grad_()]
    return milliseconds(report, both_ways(lambda: depthwise(*inputs), inputs))


def time_projections(report: Report, shapes: dict[BlockShape, int], batch: int) -> None:
    """Time one product for q, k, v, and one for gate and value, against separate products from the same weights."""
    rows: list[list[str]] = []
    totals = {"split": 0.0, "merged": 0.0}
    for shape, count in shapes.items():
        height, width = image_size(report, shape)
        for parts, channels in ((3, shape.channels), (2, shape.hidden)):
            x = torch.randn(batch, height, width, shape.channels, device=report.device, dtype=torch.bfloat16)
            weight = torch.randn(parts * channels, shape.channels, device=report.device, dtype=torch.bfloat16)
            inputs = [x.requires_grad_(), weight.requires_grad_()]

            def split(inputs: list[Tensor] = inputs, parts: int = parts) -> list[Tensor]:
                return [F.linear(inputs[0], part) for part in inputs[1].chunk(parts)]

            def merged(inputs: list[Tensor] = inputs) -> list[Tensor]:
                return [F.linear(*inputs)]

            times = [milliseconds(report, both_ways(form, inputs)) for form in (split, merged)]
            rows.append([f"{parts} x {channels} from {shape.channels}, {height} x {width}", str(count)])
            rows[-1] += [f"{ms:.3f}" for ms in times]
            for name, ms in zip(totals, times, strict=True):
                totals[name] += count * ms
    report.text("projections forward and backward, ms", text_table(["size", "calls", *totals], rows, numeric=True))
    report.figure(f"projections_ms_per_step, batch {batch}", totals)


def time_paths(report: Report, shapes: dict[BlockShape, int], batch: int) -> None:
    """Time attention and feed-forward layer on the paths for CPUs (separate images) and GPUs (one merged image)."""
    rows: list[list[str]] = []
    totals: dict[str, float] = {}
    for shape, count in shapes.items():
        block = shape.build(report.device)
        for name, module in (("attention", block.attn), ("feed-forward", block.ffn)):
            times: list[float] = []
            for path, is_merged in (("split", False), ("merged", True)):
                module.gpu_path = is_merged
                times.append(time_module(report, module, shape, (batch, *image_size(report, shape))))
                key = f"{name}, {path}"
                totals[key] = totals.get(key, 0.0) + count * times[-1]
            rows.append([f"{name}, {shape.channels} channels, level {shape.level}", str(count)])
            rows[-1] += [f"{ms:.3f}" for ms in times]
    report.text(
        "layers forward and backward, ms", text_table(["layer", "calls", "split", "merged"], rows, numeric=True)
    )
    report.figure(f"layers_ms_per_step, batch {batch}", totals)


def time_layer_norm(report: Report, shapes: dict[BlockShape, int], batch: int) -> None:
    """Time the addition of a residual branch and the norm after it, native and in our kernel."""
    if not has_triton() or not report.on_gpu:
        report.needs_gpu("layer norm, native and ours")
        return
    times: dict[str, str] = {}
    for shape in shapes:
        norm = shape.build(report.device).norm2
        size = (batch, *image_size(report, shape), shape.channels)
        x, branch = (torch.randn(size, device=report.device).bfloat16().requires_grad_() for _ in range(2))
        inputs = [x, branch, *norm.parameters()]
        both: list[float] = []
        for norm.fused in (False, True):
            both.append(milliseconds(report, both_ways(lambda: list(norm.add(x, branch)), inputs)))  # noqa: B023
        times[f"{shape.channels} x {size[1]} x {size[2]}"] = " ".join(f"{ms:.3f}" for ms in both)
    report.figure(f"layer_norm_native_and_ours_ms, batch {batch}", times)


def time_kernels(report: Report, shapes: dict[BlockShape, int], batch: int) -> None:
    """Time blocks with each kernel against plain PyTorch, and print the lines that let `auto` use it."""
    if not has_triton():
        report.needs_gpu("which kernels are faster than plain PyTorch")
        return
    proved: list[str] = []
    for kernel in sorted(PROVED):
        rows: list[list[str]] = []
        totals, right = {"plain": 0.0, "kernel": 0.0}, True
        for shape, count in report.pick(gpu=shapes, cpu=dict(list(shapes.items())[:1])).items():
            size = (batch, *report.pick(gpu=image_size(report, shape), cpu=(5, 7)))
            block = shape.build(report.device)
            errors = block_errors(block, kernel, shape, (1, *size[1:]), torch.bfloat16)
            right = right and Comparison(kernel, shape, size, "bf16", *errors).holds
            times: list[float] = []
            for used in (None, kernel):
                use_kernel(block, used)
                times.append(time_module(report, block, shape, size))
            rows.append([f"{shape.channels} x {size[1]} x {size[2]}", str(count)])
            rows[-1] += [f"{ms:.3f}" for ms in times] + [f"{error:.1e}" for error in errors]
            for name, ms in zip(totals, times, strict=True):
                totals[name] += count * ms
        header = ["block", "blocks", "plain, ms", "kernel, ms", "error", "plain error"]
        report.text(f"blocks with {kernel}, forward and backward", text_table(header, rows, numeric=True))
        report.expect(f"blocks with {kernel} are right at the measured sizes", right)
        faster = totals["kernel"] < (1 - NOISE) * totals["plain"]
        if report.on_gpu:
            report.figure(f"blocks_ms_per_step with {kernel}, batch {batch}", totals)
            report.figure(f"{kernel}_is_faster", faster)
        if right and faster:
            proved.append(kernel)
    if report.on_gpu:
        card = torch.cuda.get_device_capability()
        lines = " ".join(f'"{kernel}": frozenset({{{card}}}),' for kernel in proved)
        report.figure("proved_here_if_check_2_passed, for PROVED in model/kernels/selection.py", lines or "no kernel")


def time_module(report: Report, module: nn.Module, shape: BlockShape, size: tuple[int, int, int]) -> float:
    """Return the ms of a module forward and backward, in bf16."""
    x = torch.randn(*size, shape.channels, device=report.device, dtype=torch.bfloat16, requires_grad=True)
    inputs = [x, *module.parameters()]

    def forward() -> Tensor:
        with torch.autocast(report.device, torch.bfloat16):
            return module(x)

    return milliseconds(report, both_ways(forward, inputs))
