"""A run that a signal has stopped exits with the configured code."""

import signal
from pathlib import Path

import pytest
from runs import called, training

from upfield.distributed.configuration import RunConfig


@pytest.mark.parametrize(
    "processes", [(), pytest.param(("--processes", "2"), marks=pytest.mark.slow)], ids=("one process", "two processes")
)
def test_a_stopped_run_exits_with_the_configured_code_and_a_finished_run_with_0(
    tiny_shards: Path, tmp_path: Path, processes: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    with training(tiny_shards, out, "--run.stopped_code", "75", "--run.trackers", "[]", *processes) as job:
        job.send(signal.SIGTERM)
        assert job.wait() == [75]
    # The run is limited to the steps already done, so it is complete.
    step = (out / "checkpoints" / "last").resolve().name.removeprefix("step-")
    options = ("--run.max_steps", str(int(step)), "--run.epochs", "100000", "--run.stopped_code", "75")
    code, said = called("--data.shards", str(tiny_shards), "--run.out", str(out), "--model.preset", "tiny", *options)
    assert code == 0, said


@pytest.mark.parametrize("code", [1, 2, -1, 126])
def test_a_reserved_exit_code_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=r"run\.stopped_code: expected 0 or 3 to 125"):
        RunConfig(out=Path("run"), stopped_code=code)
