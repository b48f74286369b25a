"""The compiled training step: time to compile, speed, difference to eager mode, kernels; and a captured step."""

import time

import torch
from torch import Tensor

from acceptance.measuring import joint_error, median_s, synchronise
from acceptance.profiling import report_profile
from acceptance.report import Report
from acceptance.stepping import SMALLEST, BareStep, make_compiling_cheap
from acceptance.tracing import WHOLE_SLICE
from upfield.model.amir import AmirConfig
from upfield.model.configuration import Kernels
from upfield.model.kernels.selection import has_triton

# bf16 has 8 bits, and compiled code rounds less often. Gradients of single parameters may differ by more.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-2, 5e-2


def run(report: Report) -> None:
    """Compare the compiled with the eager step on the same batch, without and with our kernels."""
    config = report.pick(gpu=AmirConfig.preset("official"), cpu=SMALLEST.amir(context=0))
    size, batch = report.pick(gpu=WHOLE_SLICE, cpu=(32, 24)), report.pick(gpu=16, cpu=2)
    repeats = report.pick(gpu=8, cpu=3)
    step = BareStep(report.device, config, batch, size)
    eager = step.loss().item(), step.gradients()
    eager_s = median_s(step, report.device, repeats)
    report.figure("eager_slices_per_s", batch / eager_s)
    del step
    make_compiling_cheap(report.device)
    compile_s = compiled_step(report, BareStep(report.device, config, batch, size), eager, eager_s)
    if not report.on_gpu:
        report.needs_gpu("compile time, speed and kernels of the compiled step; on a CPU, no code is generated")
    elif has_triton() and report.seconds_left() > 1.5 * compile_s + 20:
        step = BareStep(report.device, config, batch, size)
        step.network.use_kernels("on")
        compiled_step(report, step, eager, eager_s, "with_kernels_")
    else:
        report.figure("with_kernels", "not measured, because no time was left")
    # A capture that fails can leave the GPU unusable, so it comes last.
    for kernels in ("off", "on"):
        captured_step(report, config, size, kernels)


def compiled_step(
    report: Report, step: BareStep, eager: tuple[float, dict[str, Tensor]], eager_s: float, prefix: str = ""
) -> float:
    """Compile a step, compare it with eager mode, measure it, and return the seconds that compiling took.

    Args:
        report: report of the check.
        step: eager step, which is compiled.
        eager: loss and gradients of the same step in eager mode.
        eager_s: seconds of the eager step.
        prefix: prefix of the figures.
    """
    step.network.compile_blocks()
    begun = time.monotonic()
    gradients = step.gradients()
    synchronise(report.device)
    compile_s = time.monotonic() - begun
    report.figure(f"{prefix}compile_s", compile_s)
    loss_error = abs(step.loss().item() / eager[0] - 1)
    report.figure(f"{prefix}loss_relative_difference", loss_error)
    report.expect(f"{prefix}the loss is that of eager mode", loss_error < LOSS_TOLERANCE, f"{loss_error:.2g}")
    error = joint_error(gradients, eager[1])
    report.figure(f"{prefix}gradient_relative_difference", error)
    report.expect(f"{prefix}the gradient is that of eager mode", error < GRADIENT_TOLERANCE, f"{error:.2g}")
    step_s = median_s(step, report.device, report.pick(gpu=8, cpu=3))
    report.figure(f"{prefix}slices_per_s", step.batch / step_s)
    report.figure(f"{prefix}speed_relative_to_eager", eager_s / step_s)
    report_profile(report, step, step_s, prefix, f"{prefix}kernels of a compiled step, batch {step.batch}")
    return compile_s


def captured_step(report: Report, config: AmirConfig, size: tuple[int, int], kernels: Kernels) -> None:
    """Report the speed of a small eager step that is replayed as a CUDA graph, as information only."""
    if not report.on_gpu or (kernels == "on" and not has_triton()):
        report.needs_gpu(f"a captured step at batch 4, kernels {kernels}")
        return
    try:
        step = BareStep(report.device, config, 4, size)
        step.network.use_kernels(kernels)
        eager_s = median_s(step, report.device, repeats=8)
        graph = capture(step)
        captured_s = median_s(graph.replay, report.device, repeats=8)
        report.figure(f"batch_4_kernels_{kernels}_eager_slices_per_s", 4 / eager_s)
        report.figure(f"batch_4_kernels_{kernels}_cuda_graph_slices_per_s", 4 / captured_s)
        del graph, step
    except RuntimeError as error:
        report.figure(f"batch_4_kernels_{kernels}_cuda_graph", f"not possible: {str(error).splitlines()[0][:200]}")
    torch.cuda.empty_cache()


def capture(step: BareStep) -> torch.cuda.CUDAGraph:
    """Capture a step as a CUDA graph."""

    def whole_step() -> None:
        step.optimizer.zero_grad(set_to_none=False)
        step.loss().backward()
        step.optimizer.step()

    # Weights that autocast has cast and kept would belong to an earlier step.
    step.keep_casts = False
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            whole_step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        whole_step()
    return graph
