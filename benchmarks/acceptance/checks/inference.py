"""Restoring slices: parity of model files with PyTorch on this device, and the speed in bf16, eager and compiled."""

import time
from importlib.util import find_spec

import torch
from torch import Tensor

from acceptance.measuring import largest_difference, median_s, relative_error, share_beyond
from acceptance.report import Report
from acceptance.stepping import SMALLEST, make_compiling_cheap
from acceptance.tracing import WHOLE_SLICE
from upfield.model.amir import Amir, AmirConfig
from upfield.model.numerics import use_exact_float32

PARITY, SHARE_BEYOND, HALF_TOLERANCE = 1e-3, 1e-2, 0.1


def run(report: Report) -> None:
    """Compare model files with PyTorch on this device, then time the forward pass."""
    use_exact_float32()
    make_compiling_cheap(report.device)
    config = report.pick(gpu=AmirConfig.preset("official"), cpu=SMALLEST.amir(context=0))
    size = report.pick(gpu=WHOLE_SLICE, cpu=(32, 24))
    torch.manual_seed(0)
    network, small = Amir(config).eval(), Amir(SMALLEST.amir(context=0)).eval()
    if find_spec("onnxruntime") is None:
        report.expect("onnxruntime is installed", False)
    else:
        compare_engines(report, "official", network, size, ("onnx",))
        # PyTorch's engine compiles the network, which would take too long here for `official`.
        compare_engines(report, "smallest", small, (40, 32), ("onnx", "torch"))
    time_forward(report, network.to(report.device), size)


def compare_engines(report: Report, name: str, network: Amir, size: tuple[int, int], engines: tuple[str, ...]) -> None:
    """Export a network, and compare what engines restore from the file with what PyTorch restores on this device.

    Args:
        report: report of the check.
        name: name of the network in the report.
        network: in evaluation mode, on the CPU.
        size: height and width of the largest slice.
        engines: `onnx`, on the CPU, and `torch`, on this device.
    """
    from acceptance.modelfiles import write_untrained_model
    from upfield.export.modelfile.engines import open_model_file
    from upfield.export.modelfile.graph import check_graph
    from upfield.export.modelfile.parity import draw

    begun, file = time.monotonic(), report.work / f"{name}.onnx"
    write_untrained_model(network, file, "fp32")
    check_graph(file)
    report.figure(f"{name}_export_s", time.monotonic() - begun)
    report.figure(f"{name}_file_mb", file.stat().st_size / 1e6)
    opened = {
        engine: open_model_file(file, engine, "cpu" if engine == "onnx" else report.device)  # pyright: ignore[reportArgumentType]
        for engine in engines
    }
    network = network.to(report.device)
    for height, width in (size, (size[0] - 1, size[1] - 3), (size[0] * 2 // 3, size[1] // 2)):
        low = torch.from_numpy(draw(height, width)).expand(1, network.config.in_channels, height, width).contiguous()
        with torch.inference_mode():
            expected = restore(network, low.to(report.device), torch.float32)
        for engine, restorer in opened.items():
            restored = restorer.run(low.numpy())
            apart = largest_difference(torch.from_numpy(restored), expected)
            report.figure(f"{name}_{engine}_{height}x{width}_largest_difference", apart)
            share = share_beyond(torch.from_numpy(restored), expected, PARITY)
            statement = f"{name}: engine {engine} at {height} x {width} restores as PyTorch does"
            report.expect(statement, share < SHARE_BEYOND, f"{share:.2%} beyond")


@torch.inference_mode()
def time_forward(report: Report, network: Amir, size: tuple[int, int]) -> None:
    """Measure slices per second of the eager and the compiled network."""
    batches = report.pick(gpu=(4, 32), cpu=(1, 2))
    low = torch.rand(max(batches), network.config.in_channels, *size, device=report.device)
    exact = restore(network, low[:1], torch.float32)
    for compiled in (False, True):
        name = "compiled" if compiled else "eager"
        if compiled:
            network.compile_blocks()
        for batch in batches:
            part = low[:batch]
            begun = time.monotonic()
            restored = restore(network, part, torch.bfloat16)
            if compiled:
                report.figure(f"compile_batch_{batch}_s", time.monotonic() - begun)
            seconds = median_s(lambda part=part: restore(network, part, torch.bfloat16), report.device, 6)
            report.figure(f"{name}_batch_{batch}_slices_per_s", batch / seconds)
            error = relative_error(restored[:1] - part[:1], exact - part[:1])
            report.figure(f"{name}_batch_{batch}_relative_error", error)
            report.expect(f"{name} at batch {batch} is right in bf16", error < HALF_TOLERANCE, f"{error:.2g}")
    if not report.on_gpu:
        report.needs_gpu("speed of the eager and the compiled network at batches 4 and 32, and of engine torch")


def restore(network: Amir, low: Tensor, dtype: torch.dtype) -> Tensor:
    """Restore slices `(B, C, H, W)` under autocast in `dtype`; float32 turns it off."""
    with torch.autocast(low.device.type, dtype, enabled=dtype != torch.float32):
        restored = network(low)
    assert isinstance(restored, Tensor)
    return restored.float()
