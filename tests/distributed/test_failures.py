"""A failure of a single process ends with one message: its memory runs out, or another process is lost."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import SMALL, called, environment, run

from upfield.distributed import training_step
from upfield.distributed.failures.lost_process import is_lost_process
from upfield.distributed.preconditions import warn_of_emulation

GPU_FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB."
)
CPU_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes. Error code 12")
ABORTED = """
import os, sys, threading
from upfield.distributed.failures.lost_process import explain_abort
with explain_abort("explained"):
    if sys.argv[1:]:
        threading.Thread(target=os.abort).start()
        threading.Event().wait()
"""
FAULTY_RANK = """
import errno, os, sys, torch
from upfield.distributed import training_step
from upfield.distributed.train import main
FAULTS = {
    "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."),
    "file": PermissionError(errno.EACCES, "Permission denied", "shards/train/000003.tar"),
}
def fail(*_):
    raise FAULTS[sys.argv[1]]
if os.environ["RANK"] == "1" and sys.argv[1] in FAULTS:
    training_step.part_loss = fail
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("error", [GPU_FULL, CPU_FULL, MemoryError()], ids=("GPU", "CPU", "Python"))
def test_a_full_memory_names_the_settings_to_change(
    tiny_shards: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(training_step, "part_loss", fail)
    code, said = called("--data.shards", str(tiny_shards), "--run.out", str(tmp_path), *SMALL)
    last = said.strip().splitlines()[-1]
    assert code == 1
    assert "Traceback" not in said
    assert last.startswith("upfield train: error: memory ran out while training")
    assert "Choose a smaller --data.micro_batch or --data.batch_size, or --run.activation_checkpointing full." in last
    assert ("2.50 GiB more were requested" in last) == (error is GPU_FULL)


def test_other_errors_of_the_program_are_not_called_a_full_memory(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(training_step, "part_loss", fail)
    code, said = called("--data.shards", str(tiny_shards), "--run.out", str(tmp_path), *SMALL)
    assert code == 1
    assert "this is a bug in upfield" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "flags", "printed"),
    [
        ("memory", (), "process 1 of 2: memory ran out while training (2.50 GiB"),
        ("file", (), "process 1 of 2: shards/train/000003.tar: permission denied."),
        ("none", ("--optim.lr", "-1"), "optim.lr: expected a positive rate"),
        ("none", ("--data.batch_size", "3"), "data.batch_size: expected a multiple of 2"),
    ],
    ids=["memory of one", "file of one", "flag of all", "batch of all"],
)
def test_two_processes_print_one_error(
    tiny_shards: Path, tmp_path: Path, fault: str, flags: tuple[str, ...], printed: str
) -> None:
    script = tmp_path / "faulty_rank.py"
    script.write_text(FAULTY_RANK)
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), fault)
    done = run(*start, "--data.shards", str(tiny_shards), "--run.out", str(tmp_path / "run"), *SMALL, *flags)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "upfield train: error:" in line]
    assert len(errors) == 1, done.stderr
    assert f"upfield train: error: {printed}" in errors[0]


@pytest.mark.parametrize("aborted", [True, False])
def test_a_process_that_a_thread_aborts_explains_it(aborted: bool) -> None:
    command = [sys.executable, "-c", ABORTED, *["abort"] * aborted]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == (-signal.SIGABRT if aborted else 0)
    assert ("explained" in done.stderr) == aborted, done.stderr


def test_a_lost_process_is_recognised() -> None:
    assert is_lost_process(torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0."))
    assert is_lost_process(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert not is_lost_process(RuntimeError("shapes differ"))


def test_emulated_bf16_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    for precision, capability in (("bf16", (8, 0)), ("fp16", (7, 5)), ("bf16", (7, 5))):
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        warn_of_emulation(precision, torch.device("cuda"))
    assert "Tesla T4 has no hardware for bf16" in capsys.readouterr().err
