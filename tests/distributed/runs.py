"""Start training in this process, in forked ranks, or through the real entry script, and read what it wrote."""

import contextlib
import gc
import io
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from accelerate.state import AcceleratorState

from upfield.cli.accelerate_launcher import launch_command
from upfield.distributed.launch import SCRIPT, free_port
from upfield.distributed.train import main

# A script imports its libraries five times as long as it trains a few steps. The server of these processes imports them
# once, and starts a rank by forking itself.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["upfield.distributed.job", "torch._dynamo", "torch.utils.tensorboard"])
SMALL = ["--model.preset", "tiny", "--run.precision", "no", "--run.log_every", "1", "--optim.lr", "1e-3"]


def command(shards: Path | str, out: Path, *arguments: str, processes: int = 1) -> list[str]:
    start = launch_command(processes) if processes > 1 else [sys.executable]
    return [*start, str(SCRIPT), "--data.shards", str(shards), "--run.out", str(out), *SMALL, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300, check=False)


@dataclass
class ForkedJob:
    """The ranks of a job in separate processes, which call the entry script's `main`."""

    ranks: list[BaseProcess]
    log: Path

    def wait(self, timeout_s: float = 120) -> list[int | None]:
        """Return the exit code of each rank. Ranks that do not end in time are killed, and their code is None."""
        until = time.monotonic() + timeout_s
        for rank in self.ranks:
            rank.join(max(until - time.monotonic(), 0))
        codes = [rank.exitcode for rank in self.ranks]
        self.kill()
        return codes

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        """Send a signal to one rank."""
        pid = self.ranks[rank].pid
        assert pid
        os.kill(pid, number)

    def kill(self) -> None:
        """Kill all ranks."""
        for rank in self.ranks:
            rank.kill()
            rank.join()

    @property
    def said(self) -> str:
        """What the ranks printed."""
        return self.log.read_text()


def run_rank(log: Path, variables: dict[str, str], program: Callable[[], int | None]) -> None:
    """Run one rank in this process, which was forked for it, and exit with what its program returns."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(variables)
    gc.freeze()  # Otherwise, the collection at the end of a run takes as long as some steps.
    sys.exit(program())


@contextlib.contextmanager
def fork_ranks(
    program: Callable[[], int | None], processes: int, variables: dict[str, str] | None = None
) -> Iterator[ForkedJob]:
    """Call a picklable function in forked ranks, as a launcher would start them; None stands for `environment()`."""
    variables = variables or environment()
    if processes > 1:
        variables |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with tempfile.NamedTemporaryFile(suffix=".log") as file:
        job = ForkedJob([], Path(file.name))
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            job.ranks.append(FORKS.Process(target=run_rank, args=(job.log, variables | own, program)))
            job.ranks[-1].start()
        try:
            yield job
        finally:
            job.kill()


def forked(
    shards: Path | str, out: Path, *arguments: str, processes: int = 1
) -> contextlib.AbstractContextManager[ForkedJob]:
    """Start a training job in forked ranks."""
    return fork_ranks(partial(main, command(shards, out, *arguments)[2:]), processes)


def train_on_full_disk(num_bytes: int, arguments: list[str]) -> int:
    """Train in this process, which cannot write files beyond a size, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    return main(arguments)


def trained(shards: Path, out: Path, *arguments: str, processes: int = 1) -> Path:
    """Train to the end. A single process trains in this process, and several train in forked ranks."""
    arguments = (*arguments, "--data.trace", str(out / "trace.jsonl"))
    if processes > 1:
        with forked(shards, out, *arguments, processes=processes) as job:
            assert job.wait() == [0] * processes, job.said
        return out
    code, said = called(*command(shards, out, *arguments)[2:])
    assert code == 0, said
    return out


def called(*arguments: str) -> tuple[int, str]:
    """Call the entry script's `main` and return its exit code and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main([*arguments])
    AcceleratorState._reset_state(reset_partial_state=True)
    return code, said.getvalue()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def training_lines(out: Path) -> list[dict]:
    return [line for line in lines(out / "metrics.jsonl") if line["event"] == "train"]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in training_lines(out)]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


LONG = ("--run.max_steps", "100000", "--run.epochs", "100000", "--run.checkpoint_every", "2")


@contextlib.contextmanager
def training(shards: Path, out: Path, *arguments: str, processes: int = 1) -> Iterator[ForkedJob]:
    """Start a job that trains until it is stopped, and wait for its first checkpoint."""
    with forked(shards, out, *LONG, *arguments, processes=processes) as job:
        wait_for(out / "checkpoints" / "step-00000002")
        yield job


def kill_at(step: int, shards: Path, out: Path, *arguments: str, processes: int = 1) -> None:
    """Start a job, and kill it once it has written the checkpoint of a step."""
    with forked(shards, out, *arguments, processes=processes) as job:
        wait_for(out / "checkpoints" / f"step-{step:08d}")
        assert all(rank.is_alive() for rank in job.ranks)
        job.kill()


def assert_saved_where_it_stopped(out: Path) -> None:
    last = max(line["step"] for line in lines(out / "metrics.jsonl"))
    assert (out / "checkpoints" / "last").resolve().name == f"step-{last:08d}"
