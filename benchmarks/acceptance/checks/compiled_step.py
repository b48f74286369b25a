"""The compiled training step: time to compile, speed, difference to eager mode, kernels; and a captured step."""

import time

import torch

from acceptance.measuring import median_s, relative_error, synchronise
from acceptance.profiling import families_ms, kernel_table, profile_steps
from acceptance.report import Report
from acceptance.stepping import SMALLEST, BareStep, make_compiling_cheap
from acceptance.tracing import WHOLE_SLICE
from upfield.model.amir import AmirConfig

# bf16 has 8 bits, and compiled code rounds less often. Gradients of single parameters may differ by more.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-2, 5e-2


def run(report: Report) -> None:
    """Compare the compiled with the eager step on the same batch."""
    config = report.pick(gpu=AmirConfig.preset("official"), cpu=SMALLEST.amir(context=0))
    size, batch = report.pick(gpu=WHOLE_SLICE, cpu=(32, 24)), report.pick(gpu=16, cpu=2)
    repeats = report.pick(gpu=8, cpu=3)
    step = BareStep(report.device, config, batch, size)
    eager_loss = step.loss().detach()
    eager = step.gradients()
    eager_s = median_s(step, report.device, repeats)
    report.figure("eager_slices_per_s", batch / eager_s)
    captured_step(report, config, size)
    step = BareStep(report.device, config, batch, size)
    make_compiling_cheap(report.device)
    step.network.compile_blocks()
    begun = time.monotonic()
    compiled = step.gradients()
    synchronise(report.device)
    report.figure("compile_s", time.monotonic() - begun)
    loss_error = relative_error(step.loss().detach(), eager_loss)
    report.figure("loss_relative_difference", loss_error)
    report.expect("the loss is that of eager mode", loss_error < LOSS_TOLERANCE, f"{loss_error:.2g}")
    flat = [torch.cat([gradients[name].flatten() for name in sorted(eager)]) for gradients in (compiled, eager)]
    gradient_error = relative_error(*flat)
    report.figure("gradient_relative_difference", gradient_error)
    report.expect("the gradient is that of eager mode", gradient_error < GRADIENT_TOLERANCE, f"{gradient_error:.2g}")
    compiled_s = median_s(step, report.device, repeats)
    report.figure("slices_per_s", batch / compiled_s)
    report.figure("speed_relative_to_eager", eager_s / compiled_s)
    kernels = profile_steps(step, report.device, report.pick(gpu=3, cpu=1))
    report.figure("launches", sum(kernel.launches for kernel in kernels))
    report.figure("ms_by_family", families_ms(kernels))
    report.text(f"kernels of a compiled step, batch {batch}, {1e3 * compiled_s:.1f} ms", kernel_table(kernels))
    if not report.on_gpu:
        report.needs_gpu("compile time, speed and kernels of the compiled step; on a CPU, no code is generated")


def captured_step(report: Report, config: AmirConfig, size: tuple[int, int]) -> None:
    """Report the speed of a small eager step that is replayed as a CUDA graph, as information only."""
    if not report.on_gpu:
        report.needs_gpu("a captured step at batch 4")
        return
    try:
        step = BareStep(report.device, config, 4, size)
        eager_s = median_s(step, report.device, repeats=8)
        graph = capture(step)
        captured_s = median_s(graph.replay, report.device, repeats=8)
        report.figure("batch_4_eager_slices_per_s", 4 / eager_s)
        report.figure("batch_4_cuda_graph_slices_per_s", 4 / captured_s)
    except RuntimeError as error:
        report.figure("batch_4_cuda_graph", f"not possible: {str(error).splitlines()[0][:200]}")
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
