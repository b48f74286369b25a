"""Training through the real entry script: processes, resume, signals, bad input."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from runs import (
    LONG,
    SMALL,
    ForkedJob,
    assert_saved_where_it_stopped,
    called,
    command,
    environment,
    forked,
    lines,
    losses,
    trained,
    training,
)
from safetensors.torch import load_file

from upfield.common.errors import InputError
from upfield.distributed.configuration import RunConfig
from upfield.distributed.learner import load_initial_weights
from upfield.model.amir import Amir, AmirConfig


@pytest.fixture(scope="module")
def undisturbed(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_shards, tmp_path_factory.mktemp("one") / "run", "--run.max_steps", "6")


def test_a_run_writes_the_documented_files(undisturbed: Path) -> None:
    assert (undisturbed / "config.yaml").is_file()
    assert list((undisturbed / "tensorboard").iterdir())
    assert (undisturbed / "checkpoints" / "last").resolve().name == "step-00000006"
    assert not (undisturbed / "best").is_symlink()
    assert {path.name for path in (undisturbed / "best").iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "metrics.json",
    }
    validation = [line for line in lines(undisturbed / "metrics.jsonl") if line["event"] == "validation"]
    assert validation[-1]["cubic_psnr_slice"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data.batch_size", "3", "--processes", "2"],
            "expected a multiple of 2, the number of processes, found 3. Choose 2 or 4.",
        ),
        (["--data.shards", "nowhere"], "there is no shard set here"),
        (["--data.batch_sise", "4"], "did you mean --data.batch_size?"),
        (["--optim.lr", "-1"], "expected a positive rate"),
        (["--run.precision", "fp16"], "fp16 needs a GPU, but this machine has none"),
        (["--run.kernels", "on"], "run.kernels: on needs a CUDA GPU"),
        (["--run.resume", "nowhere"], "cannot resume from this path because model.safetensors is missing"),
        (["--data.batch_size", "100000"], "expected at least 100000 training samples (data.batch_size)"),
        (["--loss.ms_ssim_weight", "1"], "expected slices or crops of at least 176 x 176, found 24 x 28"),
        (["--data.augment.crop", "[9, 9]", "--loss.ssim_weight", "1"], "expected slices or crops of at least 11 x 11"),
        (["--run.trackers", '["tensorbord"]'], "found tensorbord"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tiny_shards: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from upfield.distributed.train import main

    out = tmp_path / "run"
    code = main(["--data.shards", str(tiny_shards), "--run.out", str(out), *SMALL, *arguments])
    printed = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(printed) == 1
    assert message in printed[0]
    assert not out.exists()


def test_other_data_or_batches_are_refused_on_resume(tiny_shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    arguments = ("--run.resume", str(undisturbed / "checkpoints/last"), "--data.batch_size", "2")
    code, said = called(*command(tiny_shards, tmp_path / "run", *arguments)[2:])
    assert code == 2
    assert "trained with batch_size 4, but the run has 2" in said


def test_a_run_without_resume_removes_the_earlier_run(tiny_shards: Path, tmp_path: Path) -> None:
    out = trained(tiny_shards, tmp_path / "run", "--run.max_steps", "4", "--run.checkpoint_every", "2")
    trained(tiny_shards, out, "--run.max_steps", "2", "--run.resume", "none", "--run.seed", "1")
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert json.loads((out / "best" / "metrics.json").read_text())["step"] == 2
    assert {line["step"] for line in lines(out / "metrics.jsonl")} == {1, 2}


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_samples(
    tiny_shards: Path, tmp_path: Path
) -> None:
    code, said = called(*command(tiny_shards, tmp_path / "run", "--optim.lr", "1e30", "--run.max_steps", "9")[2:])
    assert code == 1
    message = said.strip().splitlines()[-1]
    assert "expected a finite loss" in message
    assert "-x0" in message


@pytest.mark.parametrize("published", [False, True])
def test_training_starts_from_given_weights(
    tiny_shards: Path, undisturbed: Path, tmp_path: Path, published: bool
) -> None:
    weights = undisturbed / "best" / "model.safetensors"
    given = load_file(weights)
    if published:
        weights = tmp_path / "net.pth"
        torch.save({"params": given}, weights)
    arguments = ("--model.init", str(weights), "--run.max_steps", "1", "--optim.lr", "1e-12")
    out = trained(tiny_shards, tmp_path / "run", *arguments)
    started = load_file(out / "best" / "model.safetensors")
    assert all(started[name].allclose(given[name], atol=1e-6) for name in given)


def test_a_file_of_other_objects_is_not_called_a_misfit(tmp_path: Path) -> None:
    torch.save({"params": print}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=r"bad.pth: not a weight file that holds only tensors .*Name a weight file"):
        load_initial_weights(Amir(AmirConfig.preset("tiny")), tmp_path / "bad.pth")


@pytest.mark.slow
def test_a_signal_to_the_launching_command_reaches_every_rank(tiny_shards: Path, tmp_path: Path) -> None:
    with training(tiny_shards, tmp_path / "run", "--processes", "2", "--data.num_workers", "1") as job:
        job.send(signal.SIGUSR1)
        assert job.wait() == [0]
    assert_saved_where_it_stopped(tmp_path / "run")


@pytest.mark.slow
def test_a_signal_before_the_processes_have_started_is_not_lost(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with forked(tiny_shards, out, *LONG, "--processes", "2") as job:
        wait_until_caught(job, signal.SIGUSR1)
        job.send(signal.SIGTERM)
        assert job.wait() == [0], job.said
        assert "stopped by a signal before" in job.said
    assert not list(out.glob("checkpoints/step-*"))


def wait_until_caught(job: ForkedJob, number: int) -> None:
    """Wait until the first rank of a job has installed a handler for a signal."""
    deadline = time.monotonic() + 60
    while not has_handler(job.ranks[0].pid, number):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_handler(process: int | None, number: int) -> bool:
    """Return whether a process catches a signal, as Linux reports it."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    return bool(int(status.partition("\nSigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def test_a_signal_to_one_process_makes_all_save_at_the_same_step(tiny_shards: Path, tmp_path: Path) -> None:
    with training(tiny_shards, tmp_path / "run", processes=2) as job:
        job.send(signal.SIGUSR1, rank=1)
        assert job.wait() == [0, 0], job.said
    assert_saved_where_it_stopped(tmp_path / "run")


def test_resuming_from_an_earlier_checkpoint_removes_the_later_ones(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--run.checkpoint_every", "2", "--run.keep_checkpoints", "9")
    out = trained(tiny_shards, tmp_path / "run", "--run.max_steps", "6", *arguments)
    back = str(out / "checkpoints" / "step-00000002")
    trained(tiny_shards, out, "--run.max_steps", "4", "--run.resume", back, *arguments)
    steps = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    assert steps == ["step-00000002", "step-00000004"]
    # The best model is kept, although it was saved after the checkpoint.
    assert json.loads((out / "best" / "metrics.json").read_text())["step"] == 6


def test_another_seed_is_refused_on_resume(tiny_shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    arguments = ("--run.resume", str(undisturbed / "checkpoints/last"), "--run.seed", "9")
    code, said = called(*command(tiny_shards, tmp_path / "run", *arguments)[2:])
    assert code == 2
    assert "this checkpoint was trained with seed 0, but the run has 9" in said


def test_activation_checkpointing_changes_memory_and_not_the_weights(
    tiny_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = trained(tiny_shards, tmp_path / "run", "--run.max_steps", "6", "--run.activation_checkpointing", "full")
    weights, expected = (load_file(folder / "checkpoints/last/model.safetensors") for folder in (out, undisturbed))
    assert all(weights[name].equal(expected[name]) for name in expected)


@pytest.mark.slow
def test_a_compiled_network_trains_like_an_eager_one(tiny_shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    arguments = (*command(tiny_shards, tmp_path, "--run.max_steps", "6"), "--run.compile", "true")
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), rel=1e-4)


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
