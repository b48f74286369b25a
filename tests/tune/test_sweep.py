"""A sweep trains every combination through the same `fit`, and leaves its best run ready for export."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from upfield.tune import sweep
from upfield.tune.sweep import main


def test_a_sweep_ranks_its_trials_and_points_at_the_best(tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        f"train:\n  data: {{shards: {tiny_shards}}}\n  model: {{preset: tiny}}\n"
        "  run: {max_steps: 2, precision: 'no'}\nspace:\n  optim.lr: [1.0e-3, 1.0e-5]\n  data.batch_size: [2]\n"
    )
    out = tmp_path / "sweep"
    command = [sys.executable, sweep.__file__, "--config", str(tmp_path / "sweep.yaml"), "--out", str(out)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {float(row["optim.lr"]) for row in rows} == {1e-3, 1e-5}
    scores = [float(row["psnr_slice"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert (out / "best").resolve() == Path(rows[0]["run"]).resolve()
    assert (out / "best" / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("space: {}", "expected at least one dotted training key"),
        ("space: {optim.rate: [1]}", "unknown key optim.rate"),
        ("space: {optim.lr: [-1]}", "expected a positive rate"),
        ("space: {optim.lr: [1]}", "expected --train.data.shards"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(
    tmp_path: Path, run_cli: Callable, content: str, message: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(content)
    code, _, err = run_cli(main, "--config", tmp_path / "sweep.yaml", "--out", tmp_path / "sweep")
    assert code == 2
    assert message in err
    assert not (tmp_path / "sweep").exists()
