"""What a figure depends on beside model and data: the machine and the versions of what computed it."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch

PACKAGES = ("upfield", "numpy", "scipy", "scikit-image", "torchmetrics")


def provenance() -> dict[str, Any]:
    """Say when, on what machine, over how many processes and with what versions this process computes."""
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        **gpu,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        **{name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    """Name the processor."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
