"""Start processes, and make sure that they are as many as were asked for."""

import argparse
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

import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, LoggerType, ProjectConfiguration

from upfield.common.command import EXIT_FAILURE, EXIT_INPUT, to_yaml
from upfield.common.errors import InputError, RunError
from upfield.common.progress import say
from upfield.common.stop_signals import StopRequest, stop_signals
from upfield.common.tasks import end_with_parent
from upfield.distributed.configuration import TrainConfig

SCRIPT = Path(__file__).with_name("train.py")
ASK_EVERY_S = 0.2
GRACE_S = 15.0  # for processes to notice that another has failed


def asked_world_size() -> int:
    """Give the number of processes that a launcher was asked for; 1 without a launcher.

    `accelerate launch` starts a single one on CPUs, whatever it is asked for, and says so only in its own command.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    try:
        arguments = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return 1
    if not any("accelerate" in argument for argument in arguments[:3]):
        return 1
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--config_file", "--config-file")
    asked, _ = parser.parse_known_args(arguments)
    if asked.num_processes is not None:
        return asked.num_processes
    if asked.config_file is None and not Path(default_config_file).is_file():
        return 1
    return int(getattr(load_config_from_file(asked.config_file), "num_processes", 1))


def relaunch(script: Path, config: Any, stop: StopRequest | None = None) -> int:
    """Run a script on several processes of this machine, as torchrun would, and give its exit code.

    A launcher's own would be 1 whatever the processes' is, below a traceback.

    Args:
        script: takes `--config`.
        config: its configuration, whose `processes` says how many.
        stop: set when the processes are to save and leave.
    """
    count = config.processes
    environment = dict(os.environ) | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "true"}
    environment.setdefault("OMP_NUM_THREADS", str(threads_each(count)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(replace(config, processes=1)), encoding="utf-8")
        command = [sys.executable, str(script), "--config", str(file)]
        with contextlib.ExitStack() as leaving:
            ranks: list[subprocess.Popen[bytes]] = []
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # In a session of its own: what a terminal or a scheduler sends to all comes once, through here.
                process = subprocess.Popen(
                    command, env=environment | own, preexec_fn=end_with_parent, start_new_session=True
                )
                leaving.callback(process.kill)
                ranks.append(process)
            return wait_for_ranks(ranks, stop or StopRequest())


def wait_for_ranks(ranks: "list[subprocess.Popen[bytes]]", stop: StopRequest) -> int:
    """Wait until all processes have ended, a while at most after the first that failed; give the exit code of all.

    Args:
        ranks: the processes.
        stop: set when they are to be asked to stop.
    """
    failed_at = None
    while any(process.poll() is None for process in ranks):
        time.sleep(ASK_EVERY_S)
        if stop.asked:
            ask_to_stop([process.pid for process in ranks])
        if failed_at is None and any(process.poll() for process in ranks):
            failed_at = time.monotonic()
            for rank, process in enumerate(ranks):
                if (code := process.returncode or 0) < 0:
                    say(f"process {rank} of {len(ranks)} was ended by {signal.Signals(-code).name}")
        # The others notice by themselves, or wait for it in vain.
        if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
            for process in ranks:
                process.kill()
    codes = {process.returncode for process in ranks}
    if EXIT_INPUT in codes:
        return EXIT_INPUT
    return max(codes) if len(codes) == 1 and min(codes) >= 0 else EXIT_FAILURE


def free_port() -> int:
    """Give a port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def threads_each(processes: int) -> int:
    """Give the threads that leave no core of this process's idle."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def run_launcher(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run a launcher to its end; give its exit code, and whether it was asked to stop.

    A request to stop goes to the ranks, which save and leave with 0; the launcher would only kill them.
    """
    with stop_signals() as stop, subprocess.Popen(command, env=environment, preexec_fn=end_with_parent) as process:
        while True:
            try:
                return process.wait(timeout=ASK_EVERY_S), stop.asked
            except subprocess.TimeoutExpired:
                if stop.asked:
                    ask_to_stop(children_of(process.pid))


def children_of(process: int) -> list[int]:
    """Give a process's children; none if it has gone."""
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split()]
    return []


def ask_to_stop(processes: list[int]) -> None:
    """Send SIGUSR1 to those processes that listen to it: the others it would kill.

    To be repeated, since ranks need seconds to come and to listen; once they do, asking again changes nothing.
    """
    for process in processes:
        # It may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if listens(process, signal.SIGUSR1):
                os.kill(process, signal.SIGUSR1)


def listens(process: int, number: int) -> bool:
    """Tell whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    return bool(int(status.partition("\nSigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def launcher(processes: int) -> list[str]:
    """Give the `accelerate launch` command, without the script, for a number of processes on this machine."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    # Accelerate's own choice is one thread per process, which leaves cores idle.
    command += ["--dynamo_backend", "no", "--num_processes", str(processes)]
    command += ["--num_cpu_threads_per_process", str(threads_each(processes))]
    # On CPUs too: `--cpu` would start a single process whatever number it is given. Port 0 takes a free one.
    return [*command, *(["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--quiet"])]


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """Join the process group. Collective: ALL ranks call it.

    Raises:
        RunError: the processes do not see each other.
    """
    world_size = asked_world_size()
    accelerator = Accelerator(
        mixed_precision=config.run.precision,
        log_with=list(config.run.trackers),
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out)),
        # Loaders are our own and never prepared; this keeps a mistake from reading everything on rank 0.
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.run.timeout_s))],
    )
    if accelerator.num_processes != world_size:
        raise RunError(
            f"expected {world_size} processes in one group, found {accelerator.num_processes}; "
            "launch by `accelerate launch --multi_gpu --num_processes N` or torchrun (CPUs: ACCELERATE_USE_CPU=true)"
        )
    return accelerator


def refuse_trackers(names: list[str]) -> None:
    """Refuse trackers that cannot be had.

    Raises:
        InputError: Accelerate does not know one, or its package is not installed.
    """
    known = sorted(str(kind) for kind in LoggerType if kind != LoggerType.ALL)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"run.trackers: expected any of {', '.join(known)}, found {unknown[0]}")
    available = {str(kind) for kind in get_available_trackers()}
    if missing := [name for name in names if name not in available]:
        raise InputError(f"run.trackers: expected the package of {missing[0]}, found it not installed: pip install it")


def refuse_uneven_batch(batch_size: int, world_size: int) -> None:
    """Raise InputError where a global batch cannot be divided evenly."""
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        near = {below or world_size, below + world_size}
        raise InputError(
            f"data.batch_size: expected a multiple of the {world_size} processes, since it is the global batch, "
            f"found {batch_size}; choose {' or '.join(map(str, sorted(near)))}"
        )
