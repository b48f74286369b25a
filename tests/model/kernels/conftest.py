"""Triton's interpreter, which runs the kernels on the CPU.

Triton chooses between compiler and interpreter when a kernel is defined, so the kernels are imported here first.
"""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "model/kernels"
KERNELS = sorted({path.stem for path in FOLDER.glob("*.py")} - {"__init__", "selection"})
HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore = [] if HAS_TRITON else [f"test_{kernel}.py" for kernel in KERNELS]  # triton exists for Linux only

if HAS_TRITON:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for kernel in KERNELS:
            importlib.import_module(f"upfield.model.kernels.{kernel}")


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
