"""Restoring slices: eager and compiled in bf16 at two batch sizes, and the parity of an export with PyTorch here."""

import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from acceptance.measuring import largest_difference, median_s, relative_error
from acceptance.profiling import set_tf32
from acceptance.report import Report
from acceptance.stepping import SMALLEST, make_compiling_cheap
from acceptance.tracing import WHOLE_SLICE
from upfield.model.amir import Amir, AmirConfig

PARITY, HALF_TOLERANCE = 1e-3, 3e-2


def run(report: Report) -> None:
    """Time the forward pass, then compare an exported file with PyTorch on this device."""
    set_tf32(False)
    config = report.pick(gpu=AmirConfig.preset("official"), cpu=SMALLEST.amir(context=0))
    size = report.pick(gpu=WHOLE_SLICE, cpu=(32, 24))
    torch.manual_seed(0)
    network = Amir(config).eval()
    compare_export(report, network, size)
    network.to(report.device)
    time_forward(report, network, size)


@torch.inference_mode()
def time_forward(report: Report, network: Amir, size: tuple[int, int]) -> None:
    """Measure slices per second of the eager and the compiled network."""
    batches = report.pick(gpu=(4, 32), cpu=(1, 2))
    low = torch.rand(max(batches), network.config.in_channels, *size, device=report.device)
    exact = restore(network, low[:1], torch.float32)
    for compiled in (False, True):
        name = "compiled" if compiled else "eager"
        if compiled:
            make_compiling_cheap(report.device)
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


def restore(network: Amir, low: Tensor, dtype: torch.dtype) -> Tensor:
    """Restore slices `(B, C, H, W)` under autocast in `dtype`; float32 turns it off."""
    with torch.autocast(low.device.type, dtype, enabled=dtype != torch.float32):
        restored = network(low)
    assert isinstance(restored, Tensor)
    return restored.float()


def compare_export(report: Report, network: Amir, size: tuple[int, int]) -> None:
    """Export the network and compare the file, run by ONNX Runtime on the CPU, with PyTorch on this device."""
    if find_spec("onnxruntime") is None:
        report.expect("onnxruntime is installed", False)
        return
    import onnx
    import onnxruntime

    from upfield.export.modelfile.graph import build_graph, check_graph
    from upfield.export.modelfile.parity import draw

    file = report.work / "model.onnx"
    begun = time.monotonic()
    onnx.save(build_graph(network, half=False), file)
    check_graph(file)
    report.figure("export_s", time.monotonic() - begun)
    report.figure("model_file_mb", Path(file).stat().st_size / 1e6)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    network = network.to(report.device)
    for height, width in (size, (size[0] - 1, size[1] - 3), (size[0] * 2 // 3, size[1] // 2)):
        low = torch.from_numpy(draw(height, width)).expand(1, network.config.in_channels, height, width).contiguous()
        with torch.inference_mode():
            expected = restore(network, low.to(report.device), torch.float32)
        exported = torch.from_numpy(session.run(["high"], {"low": low.numpy()})[0])
        apart = largest_difference(expected, exported)
        report.figure(f"export_{height}x{width}_largest_difference", apart)
        report.expect(f"the export at {height} x {width} is PyTorch's result", apart < PARITY, f"{apart:.2g}")
