"""The engines' program reaches its end on a CPU, and names what it leaves out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_engine_that_a_cpu_has_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_inference.py"), "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "left out: TensorRT" in done.stdout
    results = {line["check"]: line for line in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert {number: result["status"] for number, result in results.items()} == {
        1: "passed",
        2: "passed",
        3: "needs a GPU",
        4: "passed",
    }
    for number in (2, 4):
        speeds = [name for name in results[number]["figures"] if name.endswith("slices_per_s")]
        assert len(speeds) == 4
        assert len(results[number]["held"]) == 4
