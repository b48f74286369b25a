"""Sweeps that run in their own processes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from upfield.tune import sweep

TIMEOUT_S = 400


def write_config(folder: Path, shards: Path, text: str, run: str = "") -> Path:
    """Write a sweep configuration with the preset `tiny`; `run` extends the keys of `train.run`, and `text` follows."""
    path = folder / "sweep.yaml"
    path.write_text(
        f"train:\n  data: {{shards: {shards}, batch_size: 4}}\n  model: {{preset: tiny}}\n"
        f"  run: {{precision: 'no', trackers: [], pictures: 0{run}}}\n{text}"
    )
    return path


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, sweep.__file__, "--config", str(config), "--out", str(out)]


def environment() -> dict[str, str]:
    return {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"} | {
        key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"
    }


def run_sweep(config: Path, out: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a sweep to its end."""
    done = subprocess.run(
        [*command(config, out), *arguments],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))
