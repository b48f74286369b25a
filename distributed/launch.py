"""Start the processes of a job, and check that a launcher started all the processes that it was asked for."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, ProjectConfiguration

from upfield.common.command import EXIT_FAILURE, EXIT_INPUT, to_yaml
from upfield.common.errors import RunError
from upfield.common.progress import say
from upfield.common.stop_signals import StopRequest, stop_signals
from upfield.common.tasks import end_with_parent
from upfield.distributed.configuration import TrainConfig

SCRIPT = Path(__file__).with_name("train.py")
POLL_S = 0.2
GRACE_S = 15.0  # for ranks to notice that another has failed
ADVICE = "Use `accelerate launch --multi_gpu --num_processes N` or torchrun, and on CPUs set ACCELERATE_USE_CPU=true."


def expected_world_size() -> int:
    """Return the number of processes in the job; 1 without a launcher.

    On CPUs `accelerate launch` starts one process whatever number it was asked for, and does not say so. It gives
    itself away: for more than one process it exports MASTER_ADDR, and only a process group has a WORLD_SIZE.

    Raises:
        RunError: `accelerate launch` was asked for several processes and started none but this.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # Accelerate exports the precision for any number of processes.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise RunError(
            f"accelerate launch was asked for several processes (MASTER_ADDR is set) but started only one. {ADVICE}"
        )
    return 1


def make_accelerator(config: TrainConfig, world_size: int) -> Accelerator:
    """Join the process group. Collective: ALL ranks call it.

    Args:
        config: the run's.
        world_size: number of processes in the job.

    Raises:
        RunError: the group has another number of processes.
    """
    accelerator = Accelerator(
        mixed_precision=config.run.precision,
        log_with=list(config.run.trackers),
        project_config=ProjectConfiguration(project_dir=str(config.run.out), logging_dir=str(config.run.out)),
        # Our loaders are never prepared. If one is by mistake, this keeps rank 0 from reading everything.
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.run.timeout_s))],
    )
    if accelerator.num_processes != world_size:
        raise RunError(f"expected {world_size} processes in one group, found {accelerator.num_processes}. {ADVICE}")
    return accelerator


def relaunch(script: Path, config: Any, stop: StopRequest | None = None) -> int:
    """Run a script in several processes on this machine, as torchrun would, and return the job's exit code.

    torchrun and Accelerate's launcher would print a traceback and exit with 1 whatever the ranks' exit code is.

    Args:
        script: takes `--config`.
        config: its configuration; `processes` is the number of processes.
        stop: set when the processes must save and leave.
    """
    count = config.processes
    environment = dict(os.environ) | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "true"}
    environment.setdefault("OMP_NUM_THREADS", str(threads_per_process(count)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(replace(config, processes=1)), encoding="utf-8")
        command = [sys.executable, str(script), "--config", str(file)]
        with contextlib.ExitStack() as stack:
            ranks: list[subprocess.Popen[bytes]] = []
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # In its own session, so that a signal from a terminal or scheduler comes once, through this process.
                process = subprocess.Popen(
                    command, env=environment | own, preexec_fn=prepare_rank, start_new_session=True
                )
                stack.callback(process.kill)
                ranks.append(process)
            return wait_for_ranks(ranks, stop or StopRequest())


def prepare_rank() -> None:
    """Set up a process before it runs its program: it ends with its parent and ignores SIGUSR1.

    A program inherits an ignored signal. So a request to stop that comes while a rank still imports its modules is
    ignored, and does not kill the rank.
    """
    end_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def wait_for_ranks(ranks: "list[subprocess.Popen[bytes]]", stop: StopRequest) -> int:
    """Wait until all processes have ended and return the job's exit code.

    After the first failure, the other processes have `GRACE_S` seconds to end.

    Args:
        ranks: the processes.
        stop: set when they must save and leave.
    """
    failed_at = None
    while any(process.poll() is None for process in ranks):
        time.sleep(POLL_S)
        if stop.asked:
            # Again and again, because ranks ignore it until their handler is installed.
            for process in ranks:
                process.send_signal(signal.SIGUSR1)
        if failed_at is None and any(process.poll() for process in ranks):
            failed_at = time.monotonic()
            for rank, process in enumerate(ranks):
                if (code := process.returncode or 0) < 0:
                    say(f"process {rank} of {len(ranks)} was ended by {signal.Signals(-code).name}")
        # The others may wait for the failed one forever.
        if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
            for process in ranks:
                process.kill()
    codes = {process.returncode for process in ranks}
    if EXIT_INPUT in codes:
        return EXIT_INPUT
    return max(codes) if len(codes) == 1 and min(codes) >= 0 else EXIT_FAILURE


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def threads_per_process(processes: int) -> int:
    """Return the number of threads with which `processes` processes use all cores of this one."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def run_launcher(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run a launcher to its end and return its exit code, and whether it was asked to stop.

    A request to stop goes to the ranks, which save and exit with 0. The launcher itself would only kill them.
    """
    with stop_signals() as stop, subprocess.Popen(command, env=environment, preexec_fn=prepare_rank) as process:
        while True:
            try:
                return process.wait(timeout=POLL_S), stop.asked
            except subprocess.TimeoutExpired:
                if stop.asked:
                    ask_children_to_stop(process.pid)


def ask_children_to_stop(launcher: int) -> None:
    """Send SIGUSR1 to a launcher's ranks. Repeat it, because ranks ignore it until their handler is installed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for rank in psutil.Process(launcher).children():
            rank.send_signal(signal.SIGUSR1)


def launch_command(processes: int) -> list[str]:
    """Return the `accelerate launch` command, without a script, for `processes` processes on this machine."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    # Accelerate's default is one thread per process, which leaves cores idle.
    command += ["--dynamo_backend", "no", "--num_processes", str(processes)]
    command += ["--num_cpu_threads_per_process", str(threads_per_process(processes))]
    # On CPUs too, because `--cpu` starts one process whatever number it is given. Port 0 takes a free one.
    return [*command, *(["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--quiet"])]
