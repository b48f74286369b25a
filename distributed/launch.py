"""Start the processes of a job on this machine, and wait for them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from upfield.common.command import to_yaml
from upfield.common.cores import chosen_threads, num_threads
from upfield.common.errors import EXIT_FAILURE, EXIT_INPUT
from upfield.common.progress import say
from upfield.common.stop_signals import StopRequest
from upfield.common.tasks import end_with_parent

SCRIPT = Path(__file__).with_name("train.py")
POLL_S = 0.2
GRACE_S = 15.0  # time for ranks to notice that another rank has failed


def relaunch(script: Path, config: Any, stop: StopRequest | None = None, threads: int = 0) -> int:
    """Run a script in several processes on this machine, as torchrun would, and return the job's exit code.

    torchrun and Accelerate's launcher are not used, because they print a traceback and exit with 1, whatever exit code
    the ranks return.

    Args:
        script: script with a `--config` flag.
        config: configuration of the script; its field `processes` is the number of processes.
        stop: request that is set when the processes must save and exit.
        threads: number of threads of each process; 0 chooses it by the load of this machine. OMP_NUM_THREADS overrides
            it.
    """
    count = config.processes
    environment = dict(os.environ) | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "true"}
    environment["OMP_NUM_THREADS"] = str(chosen_threads() or threads or num_threads(count))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(replace(config, processes=1)), encoding="utf-8")
        command = [sys.executable, str(script), "--config", str(file)]
        with contextlib.ExitStack() as stack:
            ranks: list[subprocess.Popen[bytes]] = []
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # Each rank has its own session, so that it receives a signal from a terminal or a scheduler only once,
                # through this process.
                process = subprocess.Popen(
                    command, env=environment | own, preexec_fn=prepare_rank, start_new_session=True
                )
                stack.callback(process.kill)
                ranks.append(process)
            return wait_for_ranks(ranks, stop or StopRequest())


def prepare_rank() -> None:
    """Make a new process end with its parent and ignore SIGUSR1, before it runs its program.

    A program inherits ignored signals. A request to stop that arrives while a rank still imports its modules is
    therefore ignored and does not kill the rank.
    """
    end_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def wait_for_ranks(ranks: "list[subprocess.Popen[bytes]]", stop: StopRequest) -> int:
    """Wait until all processes have ended and return the job's exit code.

    After the first failure, the other processes have `GRACE_S` seconds to end.

    Args:
        ranks: processes of the job.
        stop: request that is set when the processes must save and exit.
    """
    failed_at = None
    while any(process.poll() is None for process in ranks):
        time.sleep(POLL_S)
        if stop.asked:
            # Repeat the signal, because ranks ignore it until they have installed their handler.
            for process in ranks:
                process.send_signal(signal.SIGUSR1)
        if failed_at is None and any(process.poll() for process in ranks):
            failed_at = time.monotonic()
            for rank, process in enumerate(ranks):
                if (code := process.returncode or 0) < 0:
                    say(f"process {rank} of {len(ranks)} was killed by {signal.Signals(-code).name}")
        # The other ranks might wait forever for the failed rank.
        if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
            for process in ranks:
                process.kill()
    codes = {process.returncode for process in ranks}
    if EXIT_INPUT in codes:
        return EXIT_INPUT
    return max(codes) if len(codes) == 1 and min(codes) >= 0 else EXIT_FAILURE


def free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
