"""Measure on a GPU how fast each engine restores slices, and how near it stays to PyTorch in float32 on the CPU.

The engines are PyTorch, eager and compiled, and ONNX Runtime's CUDA and TensorRT providers. Providers that this machine
cannot use are left out. Each check is a process of its own with a time limit, as in `benchmarks/gpu_acceptance.py`, and
the folder that `--out` names receives the same files. `--device cpu` only shows that the program works: it runs a small
network, with ONNX Runtime's CPU provider.

All times are of `run`, as `upfield enhance` calls it, with the copies between host and GPU.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
# The links to the package folders, for a copy of the repository in which upfield is not installed.
sys.path.insert(1, str(ROOT / "typings"))

from acceptance.plan import Check, choose_checks  # noqa: E402
from acceptance.runner import refuse_absent_gpu, run_checks  # noqa: E402

TOTAL_S = 600.0
ENGINES = "acceptance.engines."
MACHINE = Check(1, "machine", "acceptance.checks.machine", 8)
TORCH = (
    Check(2, "PyTorch eager", f"{ENGINES}torch_eager", 40),
    Check(3, "PyTorch compiled", f"{ENGINES}torch_compiled", 150),
)
CUDA = Check(4, "ONNX CUDA", f"{ENGINES}onnx_cuda", 60)
TENSORRT = (
    Check(5, "TensorRT fp16", f"{ENGINES}tensorrt_fp16", 150),
    Check(6, "TensorRT fp32", f"{ENGINES}tensorrt_fp32", 150),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-inference"), help="folder for the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", help="numbers of the checks to run, such as 2,4")
    parser.add_argument("--total_s", type=float, default=TOTAL_S, help="time for the whole run")
    arguments = parser.parse_args(argv)
    refuse_absent_gpu(arguments.device)
    checks = [MACHINE, *TORCH, *usable_providers(arguments.device)]
    wanted = choose_checks(checks, arguments.only)
    return run_checks(wanted, arguments.out, arguments.device, ROOT, arguments.total_s)


def usable_providers(device: str) -> list[Check]:
    """Return the checks of ONNX Runtime's providers that can run here, and print why others are left out."""
    try:
        import onnxruntime as ort

        from upfield.common.errors import InputError
        from upfield.export.modelfile.providers import choose_device
    except ImportError as error:
        print(f"left out: ONNX Runtime ({error})", flush=True)
        return []
    if device == "cpu":
        print("left out: TensorRT, which does not run on a CPU", flush=True)
        return [CUDA]
    checks: list[Check] = []
    for name, found in (("cuda", (CUDA,)), ("tensorrt", TENSORRT)):
        try:
            # Loading TensorRT turns TF32 off for the whole process, and the checks inherit this environment.
            with patch.dict(os.environ):
                choose_device(name)
            checks.extend(found)
        except InputError as error:
            print(f"left out: {name} in ONNX Runtime {ort.__version__} ({error})", flush=True)
    return checks


if __name__ == "__main__":
    sys.exit(main())
