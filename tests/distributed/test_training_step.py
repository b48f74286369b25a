"""A step whose values are not finite changes nothing, although the host reads the values one step later."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from upfield.common.errors import DivergedError
from upfield.common.stop_signals import StopRequest
from upfield.distributed.configuration import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from upfield.distributed.samples.reader import Batch, TrainingBatches, allocate
from upfield.distributed.training_run import TrainingRun, open_run
from upfield.distributed.training_step import settle_step, train_step
from upfield.model.configuration import LossConfig

STOP = StopRequest()


@pytest.fixture
def run(tiny_shards: Path, tmp_path: Path) -> Iterator[TrainingRun]:
    """A run in float32 with an average and a warm-up, before its first step."""
    optim = OptimConfig(lr=1e-3, warmup_steps=8, ema_decay=0.5)
    settings = RunConfig(out=tmp_path, precision="no", on_nonfinite="skip", max_skips=1, trackers=[])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loss = LossConfig(l1_weight=1e4)  # Scaled by 2 ** 127, its gradient overflows in float32.
    run = open_run(TrainConfig(DataConfig(tiny_shards), ModelConfig(preset="tiny"), loss, optim, run=settings))
    yield run
    torch.set_num_threads(threads)
    assert run.lock is not None
    run.lock.close()
    AcceleratorState._reset_state(reset_partial_state=True)


def batch(run: TrainingRun, step: int) -> Batch:
    assert isinstance(run.batches, TrainingBatches)
    return run.batches.read(run.batches.split, step, run.batches.samples_at(step), allocate)


def spoilt(run: TrainingRun, step: int) -> Batch:
    spoilt = batch(run, step)
    spoilt.low[0, 0, 0, 0] = torch.nan
    return spoilt


def tensors(run: TrainingRun) -> list[Tensor]:
    """Return copies of the weights, of their average, and of the moments."""
    learner = run.learner
    assert learner.average is not None
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*learner.network.parameters(), *learner.average._average, *moments)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


def rate(run: TrainingRun) -> float:
    return run.learner.optimizer.param_groups[0]["lr"]


def test_a_bad_step_changes_nothing_and_is_reported_with_its_own_samples(
    run: TrainingRun, capsys: pytest.CaptureFixture[str]
) -> None:
    settle_step(run, train_step(run, batch(run, 0), STOP, None), STOP)
    before = tensors(run)
    bad = train_step(run, spoilt(run, 1), STOP, None)
    assert equal(tensors(run), before)
    assert run.progress.skipped == 0
    after = train_step(run, batch(run, 2), STOP, bad)
    said = capsys.readouterr().err
    assert "step 2: expected a finite loss" in said
    assert [run.batches.split.key(sample) in said for sample in bad.samples.tolist()] == [True] * 4
    assert not any(run.batches.split.key(sample) in said for sample in after.samples.tolist())
    assert (run.progress.step, run.progress.skipped) == (3, 1)
    assert rate(run) == pytest.approx(1e-3 * 2 / 8)  # The schedule counts one update before this step.
    assert not equal(tensors(run), before)
    settle_step(run, after, STOP)
    assert run.progress.updates == 2


def test_a_run_that_stops_one_step_late_keeps_the_weights_of_the_last_good_step(run: TrainingRun) -> None:
    run.progress.skipped = 1  # No further batch may be skipped.
    step = train_step(run, batch(run, 0), STOP, None)
    settle_step(run, step, STOP)
    before = tensors(run)
    bad = train_step(run, spoilt(run, 1), STOP, None)
    with pytest.raises(DivergedError, match="step 2: expected a finite loss"):
        train_step(run, batch(run, 2), STOP, bad)
    assert equal(tensors(run), before)


def test_ranks_hear_of_a_stop_request_when_the_step_is_settled(run: TrainingRun) -> None:
    stop = StopRequest()
    stop.asked = True
    step = train_step(run, batch(run, 0), stop, None)
    assert not stop.agreed
    train_step(run, batch(run, 1), stop, step)
    assert stop.agreed


@pytest.fixture
def half(run: TrainingRun) -> TrainingRun:
    """The run with a loss scaler, as for fp16, whose scale is so large that gradients overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    scaler.scale(torch.ones(()))  # The scaler creates its scale at the first call.
    run.accelerator.scaler, run.accelerator.native_amp = scaler, True
    run.accelerator.state._shared_state["_mixed_precision"] = "fp16"
    run.accelerator.autocast = lambda: torch.autocast("cpu", enabled=False)  # pyright: ignore[reportAttributeAccessIssue]
    run.learner = replace(run.learner, scaler=scaler)
    return run


def test_an_overflow_in_fp16_is_counted_and_halves_the_scale_and_changes_nothing_else(half: TrainingRun) -> None:
    assert half.learner.scaler is not None
    settle_step(half, train_step(half, batch(half, 0), STOP, None), STOP)
    before = tensors(half)
    overflow = train_step(half, batch(half, 1), STOP, None)
    settle_step(half, overflow, STOP)
    assert equal(tensors(half), before)
    assert half.learner.scaler.get_scale() == 2.0**125
    assert (half.progress.overflows, half.progress.skipped, half.progress.updates) == (2, 0, 0)
    half.learner.scaler.update(2.0**10)
    settle_step(half, train_step(half, batch(half, 2), STOP, None), STOP)
    assert not equal(tensors(half), before)
    assert half.learner.scaler.get_scale() == 2.0**10
    assert rate(half) == pytest.approx(1e-3 / 8)  # The schedule has not moved.
    assert (half.progress.overflows, half.progress.updates) == (2, 1)


def test_a_gradient_in_fp16_that_no_lower_scale_makes_finite_is_not_an_overflow(half: TrainingRun) -> None:
    assert half.learner.scaler is not None
    half.learner.scaler.update(1.0)
    next(half.learner.network.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    before = tensors(half)
    settle_step(half, train_step(half, batch(half, 0), STOP, None), STOP)
    assert (half.progress.overflows, half.progress.skipped) == (1, 0)
    settle_step(half, train_step(half, batch(half, 1), STOP, None), STOP)
    assert (half.progress.overflows, half.progress.skipped) == (1, 1)
    assert equal(tensors(half)[: len(before) // 2], before[: len(before) // 2])


def test_a_loss_in_fp16_that_is_not_finite_is_skipped_and_keeps_the_scale(half: TrainingRun) -> None:
    assert half.learner.scaler is not None
    half.learner.scaler.update(2.0**10)
    settle_step(half, train_step(half, spoilt(half, 0), STOP, None), STOP)
    assert half.learner.scaler.get_scale() == 2.0**10
    assert (half.progress.overflows, half.progress.skipped) == (0, 1)
