"""Versions of the libraries, the card, and the two rates that bound every kernel."""

import importlib.metadata
import platform
import subprocess

import torch

from acceptance.measuring import copy_rate, product_rate
from acceptance.report import Report
from upfield.common.cores import processor_name

LIBRARIES = ("accelerate", "numpy", "scipy", "safetensors", "torchmetrics", "onnx", "onnxruntime")


def run(report: Report) -> None:
    """Report what this machine is."""
    report.figure("python", platform.python_version())
    report.figure("torch", torch.__version__)
    report.figure("triton", version("triton"))
    for library in LIBRARIES:
        report.figure(library, version(library))
    report.figure("processor", processor_name())
    if report.on_gpu:
        describe_card(report)
    else:
        report.needs_gpu("card, driver, CUDA, cuDNN and NCCL")
    report.figure("copy_tb_s", copy_rate(report.device) / 1e12)
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        report.figure(f"product_{name}_tflop_s", product_rate(report.device, dtype) / 1e12)


def describe_card(report: Report) -> None:
    """Report the card, the driver and the libraries that come with CUDA."""
    card = torch.cuda.get_device_properties(0)
    report.figure("card", card.name)
    report.figure("driver", driver_version())
    report.figure("cuda", torch.version.cuda)
    report.figure("cudnn", torch.backends.cudnn.version())
    report.figure("nccl", ".".join(map(str, torch.cuda.nccl.version())))
    report.figure("compute_capability", f"{card.major}.{card.minor}")
    report.figure("multiprocessors", card.multi_processor_count)
    report.figure("memory_gb", card.total_memory / 1e9)
    report.figure("l2_mb", getattr(card, "L2_cache_size", 0) / 1e6)
    report.expect("the card computes in bf16", torch.cuda.is_bf16_supported(including_emulation=False))


def version(library: str) -> str:
    """Return the version of an installed library."""
    for name in (library, f"{library}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def driver_version() -> str:
    """Ask nvidia-smi for the version of the driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip()
