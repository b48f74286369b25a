"""What goes wrong in a run costs no more than it must, and is said once."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import command, environment, lines, run, started, trained, wait_for

from upfield.distributed.launch import SCRIPT
from upfield.sharding.errors import InputError

KEPT = ["last", "step-00000002", "step-00000004"]
FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from upfield.distributed.train import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def four_steps(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four") / "run"
    return trained(tiny_shards, out, "--run.max_steps", "4", "--run.checkpoint_every", "2")


@pytest.fixture
def copied(four_steps: Path, tmp_path: Path) -> Path:
    shutil.copytree(four_steps, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def one_line(stderr: str) -> str:
    """The one error in what a job printed, whose processes print their warnings too."""
    errors = [line for line in stderr.splitlines() if "error:" in line and "upfield train" in line]
    assert len(errors) == 1, stderr
    return errors[0]


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tiny_shards: Path, copied: Path) -> None:
    weights = copied / "checkpoints" / "step-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    done = run(*command(tiny_shards, copied, "--run.max_steps", "5"))
    assert done.returncode == 0
    assert "step-00000004: found model.safetensors other than it was written; going on from an older" in done.stderr
    assert "training from step 2 to step 5" in done.stderr
    assert (copied / "checkpoints" / "last").resolve().name == "step-00000005"


def test_a_run_without_a_whole_checkpoint_is_refused(copied: Path) -> None:
    from upfield.distributed.checkpoint import find_checkpoint

    for folder in (copied / "checkpoints").glob("step-*"):
        (folder / "optimizer.pt").unlink()
    with pytest.raises(InputError, match="expected a whole checkpoint to go on from, found 2 damaged"):
        find_checkpoint(copied, "auto")
    with pytest.raises(InputError, match=r"found no optimizer.pt in it; name another"):
        find_checkpoint(copied, str(copied / "checkpoints" / "step-00000002"))


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(tiny_shards: Path, copied: Path) -> None:
    size = (copied / "checkpoints/last/optimizer.pt").stat().st_size
    arguments = command(tiny_shards, copied, "--run.max_steps", "6", "--run.checkpoint_every", "1")[2:]
    done = run(sys.executable, "-c", FULL_DISK, str(size // 2), *arguments)
    assert done.returncode == 1
    assert "the checkpoint of step 5: expected to write it, found" in one_line(done.stderr)
    assert sorted(path.name for path in (copied / "checkpoints").iterdir()) == [
        "last",
        "step-00000002",
        "step-00000004",
    ]
    done = run(*command(tiny_shards, copied, "--run.max_steps", "5"))
    assert "training from step 4 to step 5" in done.stderr


def test_a_second_job_for_the_same_run_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    process = started(tiny_shards, tmp_path / "run")
    done = run(*command(tiny_shards, tmp_path / "run"))
    process.kill()
    process.wait()
    assert done.returncode == 2
    assert "expected no other training to write this run" in one_line(done.stderr)


def test_batches_without_a_finite_loss_can_be_left_out_up_to_a_limit(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--optim.lr", "1e30", "--run.on_nonfinite", "skip", "--run.max_skips", "2", "--run.max_steps", "9")
    done = run(*command(tiny_shards, tmp_path / "run", *arguments))
    assert done.returncode == 1
    assert "left out, 1 of at most 2" in done.stderr
    assert "left out, 2 of at most 2" in done.stderr
    assert "after 2 skipped before (run.max_skips)" in one_line(done.stderr)
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["skipped"] == 2


def test_two_processes_say_a_refusal_once(tiny_shards: Path, four_steps: Path, tmp_path: Path) -> None:
    arguments = ("--run.resume", str(four_steps / "checkpoints/last"), "--run.seed", "9")
    done = run(*command(tiny_shards, tmp_path / "run", *arguments, processes=2))
    assert done.returncode != 0
    assert "expected seed 0 as it was trained with, found 9" in one_line(done.stderr)


def test_a_process_that_dies_takes_the_job_with_it(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--run.epochs", "100000", "--run.checkpoint_every", "2")
    with subprocess.Popen(
        command(tiny_shards, out, *arguments, processes=2), env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(out / "checkpoints" / "step-00000002")
        subprocess.run(["kill", "-KILL", rank_one(process.pid)], check=True)
        _, stderr = process.communicate(timeout=90)
    assert process.returncode not in (0, None)
    assert "expected all processes of the job to take part, found one gone" in one_line(stderr)


def rank_one(launcher: int) -> str:
    """Give the process number of a launcher's second rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError("no second rank")


@pytest.mark.parametrize(("name", "message"), [("tensorbord", "found tensorbord"), ("wandb", "found it not installed")])
def test_unknown_and_missing_trackers_are_refused(name: str, message: str) -> None:
    from upfield.distributed.launch import usable_trackers

    with pytest.raises(InputError, match=message):
        usable_trackers(["tensorboard", name])


def node(shards: Path, out: Path, rank: int, port: int, *arguments: str) -> "subprocess.Popen[str]":
    """Start one machine's part of a job of two machines of one process each."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
    start += ["--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
    start += ["--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments = tuple(command(shards, out, *arguments)[2:])
    return subprocess.Popen([*start, str(SCRIPT), *arguments], env=environment(), stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_machines_train_one_run_and_one_ends_when_the_other_is_gone(tiny_shards: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "run", free_port()
    arguments = ("--run.epochs", "100000", "--run.checkpoint_every", "2", "--run.timeout_s", "20")
    first, second = (node(tiny_shards, out, rank, port, *arguments) for rank in range(2))
    with first, second:
        try:
            wait_for(out / "checkpoints" / "step-00000002")
            second.kill()  # Its rank goes with it.
            begun = time.monotonic()
            _, stderr = first.communicate(timeout=120)
            assert time.monotonic() - begun < 100
        finally:
            first.kill()
            second.kill()
    assert first.returncode not in (0, None)
    assert "2 processes on cpu" in stderr
    assert "expected all processes of the job to take part" in one_line(stderr)
    assert json.loads((out / "checkpoints/last/progress.json").read_text())["step"] >= 2
