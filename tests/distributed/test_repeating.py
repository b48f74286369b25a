"""Runs are reproducible for any number of processes and workers, and after being killed at any step."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import command, environment, kill_at, lines, losses, run, trained, training_lines
from safetensors.torch import load_file

from upfield.distributed import training_run
from upfield.distributed.checkpoint import TrainingProgress
from upfield.distributed.training_run import choose_and_record_threads

EPOCHS = ("--data.batch_size", "12", "--run.epochs", "2", "--run.validate_every", "100")
EMA = ("--optim.ema_decay", "0.9", "--optim.clip_norm", "0.5", "--data.augment.shift_pixels", "2")
DEGRADE = ("--data.augment.degrade.blur_pixels", "[0, 1]", "--data.augment.degrade.noise_std", "[0.01, 0.1]")
SCHEDULE = ("--optim.schedule", "cosine", "--optim.warmup_steps", "5")
# The intervals differ, so that a log line spans checkpoints, and a validation lies between two checkpoints.
MANY = ("--run.max_steps", "24", "--run.checkpoint_every", "4", "--run.validate_every", "6", "--run.log_every", "7")


def same(one: Path, other: Path, name: str) -> bool:
    tensors = [load_file(out / "checkpoints/last" / name) for out in (one, other)]
    return tensors[0].keys() == tensors[1].keys() and all(tensors[0][k].equal(tensors[1][k]) for k in tensors[0])


def without_times(out: Path) -> list[dict]:
    dropped = ("seconds", "slices_per_s", "data_wait", "memory_gb")
    return [{k: v for k, v in line.items() if k not in dropped} for line in lines(out / "metrics.jsonl")]


def flat(tree: object) -> list[object]:
    if isinstance(tree, dict):
        return [item for key, value in tree.items() for item in [key, *flat(value)]]
    return [item for value in tree for item in flat(value)] if isinstance(tree, list | tuple) else [tree]


@pytest.fixture(scope="module")
def two_epochs(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_shards, tmp_path_factory.mktemp("epochs") / "run", *EPOCHS)


def test_each_epoch_has_each_sample_once_in_another_order(two_epochs: Path) -> None:
    trace = lines(two_epochs / "trace.jsonl")
    assert [line["step"] for line in trace] == list(range(1, 31))
    first, second = ([key for line in trace if line["epoch"] == epoch for key in line["keys"]] for epoch in (0, 1))
    assert len(first) == len(set(first)) == 180
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(
    ("processes", "workers"),
    [
        pytest.param(1, 3, marks=pytest.mark.slow),
        (2, 1),
        pytest.param(4, 0, marks=pytest.mark.slow),
        pytest.param(2, 3, marks=pytest.mark.slow),
    ],
)
def test_the_trace_is_the_same_for_any_number_of_processes_and_workers(
    tiny_shards: Path, two_epochs: Path, tmp_path: Path, processes: int, workers: int
) -> None:
    arguments = (*EPOCHS, "--data.num_workers", str(workers))
    out = trained(tiny_shards, tmp_path / "run", *arguments, processes=processes)
    assert lines(out / "trace.jsonl") == lines(two_epochs / "trace.jsonl")


def test_a_run_that_is_killed_and_resumes_with_more_processes_reads_the_same(
    tiny_shards: Path, two_epochs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = (*EPOCHS, "--run.checkpoint_every", "4", "--data.trace", str(out / "trace.jsonl"))
    kill_at(8, tiny_shards, out, *arguments)
    trained(tiny_shards, out, *EPOCHS, "--run.checkpoint_every", "4", processes=2)
    assert lines(out / "trace.jsonl") == lines(two_epochs / "trace.jsonl")


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_that_is_killed_and_resumes_ends_bit_for_bit_the_same(
    tiny_shards: Path, tmp_path: Path, processes: int
) -> None:
    arguments = (*MANY, *EMA, *SCHEDULE, *DEGRADE)
    expected = trained(tiny_shards, tmp_path / "undisturbed", *arguments, processes=processes)
    out = tmp_path / "killed"
    kill_at(8, tiny_shards, out, *arguments, processes=processes)
    trained(tiny_shards, out, *arguments, processes=processes)
    assert same(out, expected, "model.safetensors")
    assert same(out, expected, "average.safetensors")
    assert without_times(out) == without_times(expected)
    states = [torch.load(folder / "checkpoints/last/optimizer.pt", weights_only=True) for folder in (out, expected)]
    for one, other in zip(*map(flat, states), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    progress = [(folder / "checkpoints/last/progress.json").read_text() for folder in (out, expected)]
    assert progress[0] == progress[1]
    best = [(folder / "best/metrics.json").read_text() for folder in (out, expected)]
    assert best[0] == best[1]


def test_one_process_and_two_of_torchrun_train_alike(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--run.max_steps", "20", "--run.validate_every", "20", *SCHEDULE)
    one = trained(tiny_shards, tmp_path / "one", *arguments)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = run(*torchrun, *command(tiny_shards, tmp_path / "two", *arguments)[1:])
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stderr
    assert "strides" not in done.stderr
    for name in ("loss", "l1", "load", "lr", "grad_norm"):
        pair = [[line[name] for line in training_lines(out)] for out in (tmp_path / "two", one)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-4 if name == "grad_norm" else 1e-5), name
    # 20 slices in batches of 4 do not divide evenly by two.
    figures, expected = (lines(out / "metrics.jsonl")[-1] for out in (tmp_path / "two", one))
    assert figures.pop("event") == expected.pop("event") == "validation"
    assert figures == pytest.approx(expected | {"seconds": figures["seconds"]}, rel=1e-4)
    weights, expected = (load_file(out / "checkpoints/last/model.safetensors") for out in (tmp_path / "two", one))
    assert max((weights[name] - expected[name]).abs().max().item() for name in expected) < 1e-5


# Two processes that train like one are tested above.
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_accumulated_parts_train_like_the_whole(tiny_shards: Path, tmp_path: Path, processes: int) -> None:
    # Each part has its own load loss. Without the load loss, the results differ only in the order of additions.
    arguments = ("--run.max_steps", "6", "--loss.load_weight", "0", "--loss.ssim_weight", "0.1")
    whole = trained(tiny_shards, tmp_path / "whole", *arguments)
    micro = ("--data.micro_batch", str(3 // processes))
    parts = trained(tiny_shards, tmp_path / "parts", *arguments, *micro, processes=processes)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_the_same(tiny_shards: Path, two_epochs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (*EPOCHS, "--run.checkpoint_every", "1", "--data.trace", str(out / "trace.jsonl"))
    out.mkdir()
    (out / "trace.jsonl").touch()
    rng = random.Random(0)
    for number in sorted(rng.sample(range(2, 28), 5)):
        with subprocess.Popen(
            command(tiny_shards, out, *arguments), env=environment(), stderr=subprocess.DEVNULL
        ) as one:
            while one.poll() is None and len((out / "trace.jsonl").read_bytes().splitlines()) < number:
                time.sleep(rng.uniform(0, 0.02))
            assert one.poll() is None
            one.kill()
    trained(tiny_shards, out, *EPOCHS, "--run.checkpoint_every", "1")
    assert same(out, two_epochs, "model.safetensors")
    assert lines(out / "trace.jsonl") == lines(two_epochs / "trace.jsonl")


def test_a_resumed_run_keeps_its_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(training_run, "most_threads", lambda processes: 4 // processes)
    progress = TrainingProgress()
    try:
        for free in (2, 3):  # The machine is less busy when the run resumes.
            torch.set_num_threads(4)
            monkeypatch.setattr(training_run, "num_threads", lambda free=free: free)
            choose_and_record_threads(progress, world_size=1)
            assert torch.get_num_threads() == progress.threads == 2
    finally:
        torch.set_num_threads(1)
    assert progress.threads_for(most_threads=4) == 2
    assert progress.threads_for(most_threads=2) == 0  # on another number of processes or cores


def test_the_best_model_so_far_survives_a_restart(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--run.checkpoint_every", "2", "--run.validate_every", "2")
    out = trained(tiny_shards, tmp_path / "run", "--run.max_steps", "4", *arguments)
    file = out / "best/metrics.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"chosen_by": {"psnr_slice": 99.0, "slices": 20}}))
    trained(tiny_shards, out, "--run.max_steps", "8", *arguments)
    progress = json.loads((out / "checkpoints/last/progress.json").read_text())
    assert (progress["step"], progress["best_psnr"], progress["best_step"]) == (8, 99.0, 4)
    assert json.loads((out / "best/metrics.json").read_text())["step"] == 4


def test_a_validation_that_was_interrupted_is_repeated(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--run.max_steps", "4", "--run.checkpoint_every", "2", "--run.validate_every", "2")
    out = trained(tiny_shards, tmp_path / "run", *arguments)
    expected, best = without_times(out), (out / "best/metrics.json").read_text()
    file = out / "checkpoints/last/progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"validated_step": 2}))
    trained(tiny_shards, out, *arguments)
    assert without_times(out) == expected
    assert (out / "best/metrics.json").read_text() == best
    assert json.loads(file.read_text())["validated_step"] == 4


def test_curves_continue_where_the_run_resumes(tiny_shards: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ("--run.checkpoint_every", "2", "--run.keep_checkpoints", "9", "--run.pictures", "0")
    out = trained(tiny_shards, tmp_path / "run", "--run.max_steps", "6", *arguments)
    back = str(out / "checkpoints" / "step-00000002")
    trained(tiny_shards, out, "--run.max_steps", "4", "--run.resume", back, *arguments)
    curves = EventAccumulator(str(out / "tensorboard"))
    curves.Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [1, 2, 3, 4]
