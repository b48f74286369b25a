"""Run programs with NVIDIA DALI, which is too large to be installed for the tests."""

import importlib.util
import os
import subprocess
import sys

import pytest


def dali_python() -> str | None:
    """Return the path of a Python with DALI: this one, or UPFIELD_DALI_PYTHON, which may be None."""
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        return sys.executable
    return os.environ.get("UPFIELD_DALI_PYTHON")


needs_dali = pytest.mark.skipif(
    not dali_python(), reason="needs nvidia-dali, here or in the Python at UPFIELD_DALI_PYTHON"
)


def run_dali(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the Python that has DALI, which must succeed."""
    python = dali_python()
    assert python
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done
