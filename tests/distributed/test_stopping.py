"""A run that a signal or its time limit stops keeps everything, and continues as if it had not been stopped."""

import contextlib
import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from accelerate.state import AcceleratorState
from runs import called, command, forked, lines, trained, training, wait_for
from safetensors.torch import load_file

from upfield.common.stop_signals import StopReason, StopRequest
from upfield.common.stores.transfer import TransferCancelledError
from upfield.distributed import loop
from upfield.distributed.checkpoint import TrainingProgress, read_best_score, read_progress
from upfield.distributed.configuration import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from upfield.distributed.job import is_best_unmeasured
from upfield.distributed.logs.run_log import RunLog
from upfield.distributed.loop import fit
from upfield.distributed.samples.reader import Batch
from upfield.distributed.samples.validation_batches import choose_spread
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.shard_split import ShardSplit

Fit = Callable[..., TrainingProgress]


def fit_six_steps(shards: Path, out: Path, stop: StopRequest | None = None, **settings: Any) -> TrainingProgress:
    """Train in this process, with a cosine schedule."""
    run = RunConfig(out=out, **{"precision": "no", "trackers": [], "max_steps": 6, "validate_every": 3, **settings})
    optim = OptimConfig(lr=1e-3, schedule="cosine")
    try:
        return fit(TrainConfig(DataConfig(shards), ModelConfig(preset="tiny"), optim=optim, run=run), stop)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def fitted(tiny_shards: Path, tmp_path: Path) -> Fit:
    """A function that trains six steps in the folder `run`."""
    return partial(fit_six_steps, tiny_shards, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that was not stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    fit_six_steps(tiny_shards, out)
    return out


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(run / "checkpoints/last/model.safetensors") for run in (one, other))
    assert all(first[name].equal(second[name]) for name in second)


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "best" / "metrics.json").read_text())


def test_a_run_whose_time_is_up_validates_and_continues_exactly(fitted: Fit, whole: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    progress = fitted(stop, max_minutes=1e-9)
    assert (stop.agreed, progress.step, progress.validated_step) == (StopReason.TIME, 1, 1)
    assert read_progress(tmp_path / "run/checkpoints/last").validated_step == 1
    assert fitted(max_minutes=1e-9).step == 2
    assert fitted().step == 6
    assert_same_weights(tmp_path / "run", whole)
    assert [line["step"] for line in validations(tmp_path / "run")] == [1, 2, 3, 6]


def test_a_signal_before_the_first_step_leaves_nothing_behind(
    fitted: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fitted(StopRequest(asked=True)).step == 0
    assert not list((tmp_path / "run/checkpoints").glob("*"))
    assert "stopped by a signal before the first step; the same command starts the training" in capsys.readouterr().err


def test_a_signal_ends_a_validation_which_is_repeated_later(
    fitted: Fit, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    show = RunLog.validation

    @contextlib.contextmanager
    def interrupted(self: RunLog, slices: int) -> Iterator[Callable[[int], None]]:
        with show(self, slices):
            yield lambda _: setattr(stop, "asked", True)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "validation", interrupted)
        progress = fitted(stop)
    assert (progress.step, progress.validated_step) == (3, 0)
    assert not (tmp_path / "run/best").exists()
    fitted()
    assert_same_weights(tmp_path / "run", whole)
    figures = [[line["psnr_slice"] for line in validations(run)] for run in (tmp_path / "run", whole)]
    assert figures[0] == figures[1]


def test_a_signal_ends_the_wait_for_a_download(
    fitted: Fit, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, read = StopRequest(), loop.load_batches

    def downloading(*arguments: Any, **options: Any) -> Iterator[Batch]:
        with contextlib.closing(read(*arguments, **options)) as batches:
            yield from itertools.islice(batches, 2)
            stop.asked = True
            raise TransferCancelledError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "load_batches", downloading)
        assert fitted(stop).step == 2
    assert stop.agreed == StopReason.SIGNAL
    assert read_progress(tmp_path / "run/checkpoints/last").step == 2
    fitted()
    assert_same_weights(tmp_path / "run", whole)


def validations(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run / "metrics.jsonl") if line["event"] == "validation"]


def test_the_best_model_is_chosen_on_a_part_and_measured_on_the_whole_split(
    tiny_shards: Path, fitted: Fit, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    progress = fitted(validation_slices=7, validate_every=2)
    assert {line["slices"] for line in validations(out)} == {7}
    record = record_of(out)
    assert record["chosen_by"] == {"psnr_slice": progress.best_psnr, "slices": 7}
    assert progress.best_psnr == max(line["psnr_slice"] for line in validations(out))
    assert record["validation"]["slices"] == 20
    (measured,) = [line for line in lines(out / "metrics.jsonl") if line["event"] == "best"]
    assert measured["psnr_slice"] == record["validation"]["psnr_slice"] != progress.best_psnr
    # A job that ended before this measurement leaves it to the next one.
    unmeasured = record | {"validation": record["validation"] | {"slices": 7}}
    (out / "best/metrics.json").write_text(json.dumps(unmeasured))
    assert is_best_unmeasured(out, read_manifest(tiny_shards))
    fitted(validation_slices=7, validate_every=2)
    assert record_of(out) == record
    assert not is_best_unmeasured(out, read_manifest(tiny_shards))
    # The scores of a longer run with other slices are comparable, because the best model is measured again.
    assert fitted(validation_slices=9, max_steps=7, validate_every=99).best_slices == 9
    assert read_best_score(out)[2] == 9  # pyright: ignore[reportOptionalSubscript]


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
        ranks = psutil.Process(job.ranks[0].pid).children()
        assert len(ranks) == 2
        for rank in ranks:
            rank.suspend()  # Like a rank that waits for one that is lost.
        job.send(signal.SIGINT)
        time.sleep(0.5)
        job.send(signal.SIGINT)
        assert job.wait(10) == [130]
        assert psutil.wait_procs(ranks, 10)[1] == []


def test_a_launching_command_that_is_stopped_early_starts_no_process(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upfield.distributed.train.stop_signals", lambda **_: contextlib.nullcontext(StopRequest(True)))
    code, said = called(*command(tiny_shards, tmp_path / "run", "--processes", "2", "--run.stopped_code", "75")[2:])
    assert code == 75
    assert "stopped by a signal before training began; nothing was changed" in said
    assert not (tmp_path / "run").exists()
