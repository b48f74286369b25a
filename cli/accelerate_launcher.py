"""Run Accelerate's launcher, and send its ranks a request to stop."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from upfield.common.cores import num_threads
from upfield.common.stop_signals import stop_signals
from upfield.distributed.launch import POLL_S, prepare_rank

CONFIG = Path(__file__).with_name("launch.yaml")


def launch_command(processes: int) -> list[str]:
    """Return the `accelerate launch` command, without a script, for `processes` processes on this machine."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    command += ["--num_machines", "1", "--mixed_precision", "no"]
    # The number of threads is set because Accelerate's default, one thread per process, leaves cores idle.
    command += ["--dynamo_backend", "no", "--num_processes", str(processes)]
    command += ["--num_cpu_threads_per_process", str(num_threads(processes))]
    # Pass `--multi_gpu` on CPUs too, because `--cpu` starts only one process. Port 0 means any free port.
    return [*command, *(["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--quiet"])]


def run_launcher(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run a launcher, and return its exit code and whether a stop was requested.

    A stop request is sent to the ranks, which save and exit with 0. The launcher itself would only kill the ranks.
    """
    with stop_signals() as stop, subprocess.Popen(command, env=environment, preexec_fn=prepare_rank) as process:
        while True:
            try:
                return process.wait(timeout=POLL_S), stop.asked
            except subprocess.TimeoutExpired:
                if stop.asked:
                    ask_children_to_stop(process.pid)


def ask_children_to_stop(launcher: int) -> None:
    """Send SIGUSR1 to a launcher's ranks. Call it repeatedly, because ranks ignore the signal until they handle it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for rank in psutil.Process(launcher).children():
            rank.send_signal(signal.SIGUSR1)
