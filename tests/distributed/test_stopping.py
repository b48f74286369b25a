"""A run that a signal or its time limit stops keeps everything, and continues as if it had not been stopped."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from runs import called, command, forked, lines, trained, training, wait_for
from safetensors.torch import load_file

from upfield.common.stop_signals import StopReason, StopRequest
from upfield.distributed.checkpoint import TrainingProgress, read_best_score, read_progress
from upfield.distributed.configuration import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from upfield.distributed.logs.run_log import RunLog
from upfield.distributed.loop import fit
from upfield.distributed.samples.validation_batches import choose_spread
from upfield.sharding.shardset.shard_split import ShardSplit

Fit = Callable[..., TrainingProgress]


@pytest.fixture
def fitted(tiny_shards: Path, tmp_path: Path) -> Fit:
    """A function that trains in this process, with a cosine schedule, to six steps."""

    def call(stop: StopRequest | None = None, name: str = "run", **settings: Any) -> TrainingProgress:
        run = RunConfig(out=tmp_path / name, **{"precision": "no", "trackers": [], "max_steps": 6, **settings})
        optim = OptimConfig(lr=1e-3, schedule="cosine")
        config = TrainConfig(DataConfig(tiny_shards), ModelConfig(preset="tiny"), optim=optim, run=run)
        try:
            return fit(config, stop or StopRequest())
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    return call


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(run / "checkpoints/last/model.safetensors") for run in (one, other))
    assert all(first[name].equal(second[name]) for name in second)


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "best" / "metrics.json").read_text())


def test_a_run_whose_time_is_up_validates_and_continues_exactly(fitted: Fit, tmp_path: Path) -> None:
    fitted(name="whole")
    stop = StopRequest()
    progress = fitted(stop, max_minutes=1e-9)
    assert (stop.agreed, progress.step, progress.validated_step) == (StopReason.TIME, 1, 1)
    assert read_progress(tmp_path / "run/checkpoints/last").validated_step == 1
    assert fitted(max_minutes=1e-9).step == 2
    assert fitted().step == 6
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    steps = [line["step"] for line in lines(tmp_path / "run/metrics.jsonl") if line["event"] == "validation"]
    assert steps == [1, 2, 6]


def test_a_signal_before_the_first_step_leaves_nothing_behind(
    fitted: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fitted(StopRequest(asked=True)).step == 0
    assert not list((tmp_path / "run/checkpoints").glob("*"))
    assert "stopped by a signal before the first step; the same command starts the training" in capsys.readouterr().err


def test_a_signal_ends_a_validation_which_is_repeated_later(
    fitted: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted(name="whole", validate_every=3)
    stop = StopRequest()
    show = RunLog.validation

    @contextlib.contextmanager
    def interrupted(self: RunLog, slices: int) -> Iterator[Callable[[int], None]]:
        with show(self, slices):
            yield lambda _: setattr(stop, "asked", True)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "validation", interrupted)
        progress = fitted(stop, validate_every=3)
    assert (progress.step, progress.validated_step) == (3, 0)
    assert not (tmp_path / "run/best").exists()
    fitted(validate_every=3)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    figures = [[line["psnr_slice"] for line in validations(tmp_path / name)] for name in ("run", "whole")]
    assert figures[0] == figures[1]


def validations(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run / "metrics.jsonl") if line["event"] == "validation"]


def test_the_best_model_is_chosen_on_a_part_and_measured_on_the_whole_split(fitted: Fit, tmp_path: Path) -> None:
    out = tmp_path / "run"
    progress = fitted(validation_slices=7, validate_every=2)
    assert {line["slices"] for line in validations(out)} == {7}
    record = record_of(out)
    assert record["chosen_by"] == {"psnr_slice": progress.best_psnr, "slices": 7}
    assert progress.best_psnr == max(line["psnr_slice"] for line in validations(out))
    assert record["validation"]["slices"] == 20
    (measured,) = [line for line in lines(out / "metrics.jsonl") if line["event"] == "best"]
    assert measured["psnr_slice"] == record["validation"]["psnr_slice"] != progress.best_psnr
    # The scores of a longer run with other slices are comparable, because the best model is measured again.
    assert fitted(validation_slices=9, max_steps=7, validate_every=99).best_slices == 9
    assert read_best_score(out)[2] == 9  # pyright: ignore[reportOptionalSubscript]


def test_a_complete_run_whose_best_model_was_not_measured_catches_up(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--run.max_steps", "2", "--run.validation_slices", "7", "--run.trackers", "[]")
    out = trained(tiny_shards, tmp_path / "run", *arguments)
    record = record_of(out)
    (out / "best/metrics.json").write_text(json.dumps(record | {"validation": record["validation"] | {"slices": 7}}))
    trained(tiny_shards, out, *arguments)
    assert record_of(out) == record


@pytest.mark.parametrize("count", [1, 7, 19])
def test_the_chosen_slices_are_spread_over_scans_and_positions(tiny_shards: Path, count: int) -> None:
    split = ShardSplit(tiny_shards, "train")
    samples = choose_spread(split, count)
    assert len(set(samples.tolist())) == count
    assert samples.tolist() == sorted(samples.tolist())
    scans = np.bincount(split.unit_numbers[samples], minlength=len(split.units))
    assert scans.max() - scans.min() <= 1
    if count > 1:
        assert np.ptp(split.index.slices[samples]) > 5
    assert choose_spread(split, 10**6).tolist() == choose_spread(split, None).tolist() == list(range(split.num_samples))


def test_ctrl_c_saves_and_the_run_continues_exactly(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with training(tiny_shards, out, "--run.trackers", "[]") as job:
        job.send(signal.SIGINT)
        assert job.wait() == [0], job.said
        assert "Stopping after this step, once the run is saved. Ctrl-C again ends at once" in job.said
        assert "everything up to this step is saved, and the same command continues from there" in job.said
    saved = read_progress((out / "checkpoints/last").resolve()).step
    more = ("--run.epochs", "999", "--run.max_steps", str(saved + 2), "--run.trackers", "[]")
    trained(tiny_shards, out, *more)
    trained(tiny_shards, tmp_path / "whole", *more)
    assert_same_weights(out, tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_agree_when_the_time_is_up_and_continue_exactly(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--run.max_steps", "6", "--run.validation_slices", "7", "--run.trackers", "[]")
    out = tmp_path / "run"
    with forked(tiny_shards, out, *arguments, "--run.max_minutes", "1e-9", processes=2) as job:
        assert job.wait() == [0, 0], job.said
        assert "the time of run.max_minutes is up after step 1 of 6" in job.said
    trained(tiny_shards, out, *arguments, processes=2)
    trained(tiny_shards, tmp_path / "whole", *arguments, processes=2)
    assert_same_weights(out, tmp_path / "whole")
    assert record_of(out)["validation"] == record_of(tmp_path / "whole")["validation"]


@pytest.mark.slow
def test_ctrl_c_to_a_command_with_two_processes_saves(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with training(tiny_shards, out, "--processes", "2", "--run.trackers", "[]") as job:
        job.send(signal.SIGINT)
        assert job.wait() == [0], job.said
        assert job.said.count("Ctrl-C again ends at once") == 1
    last = max(line["step"] for line in lines(out / "metrics.jsonl"))
    assert (out / "checkpoints/last").resolve().name == f"step-{last:08d}"


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_processes(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with forked(tiny_shards, out, "--run.epochs", "999", "--processes", "2", "--data.batch_size", "60") as job:
        wait_for(out / "metrics.jsonl")
        job.send(signal.SIGINT)
        job.send(signal.SIGINT)
        assert job.wait(10)[0] in (0, 130)


def test_a_launching_command_that_is_stopped_early_starts_no_process(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upfield.distributed.train.stop_signals", lambda **_: contextlib.nullcontext(StopRequest(True)))
    code, said = called(*command(tiny_shards, tmp_path / "run", "--processes", "2", "--run.stopped_code", "75")[2:])
    assert code == 75
    assert "stopped by a signal before training began; nothing was changed" in said
    assert not (tmp_path / "run").exists()
