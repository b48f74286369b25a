"""The eager training step of `official`: kernels by time, launches, and its share of what the memory allows."""

from importlib.util import find_spec

import torch

from acceptance.measuring import copy_rate, median_s, product_rate
from acceptance.profiling import families_ms, kernel_table, profile_steps
from acceptance.report import Report
from acceptance.stepping import BareStep
from acceptance.tracing import WHOLE_SLICE, trace_step
from upfield.common.tables import text_table
from upfield.model.amir import AmirConfig


def run(report: Report) -> None:
    """Measure the step for a small and a large batch."""
    config = AmirConfig.preset(report.pick(gpu="official", cpu="tiny"))
    size = report.pick(gpu=WHOLE_SLICE, cpu=(48, 40))
    traffic, operations = trace_step(config, size, report.device, torch.bfloat16)
    slice_bytes = traffic.total_bytes
    report.figure("traffic_gb_per_slice", slice_bytes / 1e9)
    report.figure("operations_gflop_per_slice", operations / 1e9)
    report.text("traffic by operator, GB per slice", traffic_table(traffic.bytes_by_operator, traffic.calls))
    if report.on_gpu:
        # Counted without a GPU: 25.6 GB in the way for GPUs, 29.9 GB in that for CPUs.
        report.expect("an eager slice moves 20 to 30 GB", 20e9 < slice_bytes < 30e9, f"{slice_bytes / 1e9:.1f} GB")
    copied_s, products_s = copy_rate(report.device), product_rate(report.device, torch.bfloat16)
    for batch in report.pick(gpu=(4, 16), cpu=(1, 2)):
        step = BareStep(report.device, config, batch, size)
        step_s = median_s(step, report.device, repeats=report.pick(gpu=8, cpu=2), warm=report.pick(gpu=4, cpu=1))
        kernels = profile_steps(step, report.device, report.pick(gpu=3, cpu=1))
        busy_ms = sum(kernel.time_ms for kernel in kernels)
        prefix = f"batch_{batch}"
        report.figure(f"{prefix}_slices_per_s", batch / step_s)
        report.figure(f"{prefix}_launches", sum(kernel.launches for kernel in kernels))
        report.figure(f"{prefix}_kernels_busy", 1e-3 * busy_ms / step_s)
        report.figure(f"{prefix}_share_of_byte_roofline", batch * slice_bytes / copied_s / step_s)
        report.figure(f"{prefix}_share_of_product_rate", batch * operations / products_s / step_s)
        report.figure(f"{prefix}_ms_by_family", families_ms(kernels))
        report.text(f"kernels of a step, batch {batch}, {1e3 * step_s:.1f} ms", kernel_table(kernels))
        report.expect(f"the loss is finite at batch {batch}", bool(step().isfinite()))
        measure_kernels(report, step, step_s)
        if report.settings.against:
            compare_published(report, step, batch)
        del step
        if report.on_gpu:
            torch.cuda.empty_cache()
    if not report.on_gpu:
        report.needs_gpu("kernels, launches and the byte roofline; on a CPU, the tables list operators")


def measure_kernels(report: Report, step: BareStep, plain_s: float) -> None:
    """Measure the same step with all Triton kernels, and compare its loss with that of plain PyTorch.

    Args:
        report: report of the check.
        step: step without kernels, which gets them.
        plain_s: seconds of the step without kernels.
    """
    if not report.on_gpu or find_spec("triton") is None:
        report.needs_gpu(f"the eager step with all kernels at batch {step.batch}")
        return
    with torch.no_grad():
        expected = step.loss().item()
        step.network.use_kernels("on")
        found = step.loss().item()
    prefix = f"batch_{step.batch}_with_kernels"
    report.expect(f"{prefix}: the loss is that of plain PyTorch", abs(found / expected - 1) < 1e-2, f"{found:.5g}")
    step_s = median_s(step, report.device, repeats=8, warm=4)
    kernels = profile_steps(step, report.device, 3)
    report.figure(f"{prefix}_slices_per_s", step.batch / step_s)
    report.figure(f"{prefix}_speed_relative_to_plain", plain_s / step_s)
    report.figure(f"{prefix}_launches", sum(kernel.launches for kernel in kernels))
    report.figure(f"{prefix}_ms_by_family", families_ms(kernels))
    report.text(f"kernels of a step with our kernels, batch {step.batch}, {1e3 * step_s:.1f} ms", kernel_table(kernels))


def compare_published(report: Report, step: BareStep, batch: int) -> None:
    """Measure the published network, eager and in bf16, on the same batch: forward pass, loss and backward pass."""
    from argparse import Namespace

    from model import STEP, Row, build, runner

    preset = report.pick(gpu="official", cpu="tiny")
    options = Namespace(preset=preset, device=report.device, against=report.settings.against, arguments={})
    repeats = report.pick(gpu=8, cpu=2)
    rates: dict[str, float] = {}
    for name, row in (("published", Row("published", theirs=True, bf16=True)), ("ours", Row("ours", bf16=True))):
        # The published network takes only sizes that are multiples of 8.
        low = torch.nn.functional.pad(step.low, (0, -step.low.shape[3] % 8, 0, -step.low.shape[2] % 8))
        call = runner(build(options, row), row, STEP, low)
        rates[name] = batch / median_s(call, report.device, repeats)
        report.figure(f"batch_{batch}_{name}_without_optimizer_slices_per_s", rates[name])
    report.figure(f"batch_{batch}_speed_relative_to_published", rates["ours"] / rates["published"])


def traffic_table(bytes_by_operator: dict[str, int], calls: dict[str, int]) -> str:
    """Format the operators that move most bytes."""
    rows = [
        [name, f"{count / 1e9:.3f}", str(calls[name])]
        for name, count in sorted(bytes_by_operator.items(), key=lambda item: -item[1])[:25]
    ]
    return text_table(["operator", "GB", "calls"], rows, numeric=True)
