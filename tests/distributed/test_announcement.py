"""What a run says before its first step."""

from types import SimpleNamespace
from typing import Any

import pytest

from upfield.distributed import training_run


def test_the_first_line_of_a_run_fits_100_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(training_run, "describe_batches", lambda *_: [])
    device = SimpleNamespace(type="cpu")
    run: Any = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True, num_processes=8, device=device),
        progress=SimpleNamespace(step=0, micro_batch=4, activation_checkpointing="blocks", threads=1, most_threads=1),
        total_steps=24120,
        batches=SimpleNamespace(split=SimpleNamespace(num_samples=80400)),
        config=SimpleNamespace(data=SimpleNamespace(batch_size=128), run=SimpleNamespace(precision="fp32")),
    )
    training_run.announce(run)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 100, lines
    assert lines[1] == "4 slices per pass, activation checkpointing blocks"
