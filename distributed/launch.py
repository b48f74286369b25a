"""Start processes, and make sure that they are as many as were asked for."""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, LoggerType, ProjectConfiguration

from upfield.distributed.configuration import TrainConfig
from upfield.distributed.stopping import stop_signals
from upfield.sharding.command import to_yaml
from upfield.sharding.errors import InputError, RunError
from upfield.sharding.tasks import end_with_parent

SCRIPT = Path(__file__).with_name("train.py")


def asked_world_size() -> int:
    """Give the number of processes that a launcher says it started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def relaunch(script: Path, config: Any) -> int:
    """Run a script on several processes of this machine through `accelerate launch`; give its exit code.

    Args:
        script: takes `--config`.
        config: its configuration, whose `processes` says how many.
    """
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(replace(config, processes=1)), encoding="utf-8")
        command = [*launcher(config.processes), str(script), "--config", str(file)]
        return run_launcher(command, environment)[0]


def run_launcher(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run a launcher to its end; give its exit code, and whether it was asked to stop.

    A request to stop goes to the ranks, which save and leave with 0; the launcher would only kill them.
    """
    with subprocess.Popen(command, env=environment, preexec_fn=end_with_parent) as process:

        def to_ranks(number: int) -> None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
            for rank in children.split():
                os.kill(int(rank), number)

        with stop_signals(to_ranks) as stop:
            return process.wait(), stop.asked


def launcher(processes: int) -> list[str]:
    """Give the `accelerate launch` command, without the script, for a number of processes on this machine."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    # Accelerate's own choice is one thread per process, which leaves cores idle.
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    command += ["--dynamo_backend", "no", "--num_processes", str(processes)]
    command += ["--num_cpu_threads_per_process", str(threads)]
    # On CPUs too: `--cpu` would start a single process whatever number it is given. Port 0 takes a free one.
    return [*command, *(["--multi_gpu", "--main_process_port", "0"] if processes > 1 else ["--quiet"])]


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """Join the process group. Collective: ALL ranks call it.

    Raises:
        InputError: the batch cannot be divided over the processes, or fp16 is asked for without a GPU.
        RunError: the processes do not see each other.
    """
    world_size = asked_world_size()
    refuse_uneven_batch(config.data.batch_size, world_size)
    if config.run.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("run.precision: expected bf16 or no where there is no GPU, found fp16")
    accelerator = Accelerator(
        mixed_precision=config.run.precision,
        log_with=usable_trackers(config.run.trackers),
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


def usable_trackers(names: list[str]) -> list[Any]:
    """Give the trackers by name.

    Raises:
        InputError: Accelerate does not know one, or its package is not installed.
    """
    known = sorted(str(kind) for kind in LoggerType if kind != LoggerType.ALL)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"run.trackers: expected any of {', '.join(known)}, found {unknown[0]}")
    available = {str(kind) for kind in get_available_trackers()}
    if missing := [name for name in names if name not in available]:
        raise InputError(f"run.trackers: expected the package of {missing[0]}, found it not installed: pip install it")
    return names


def refuse_uneven_batch(batch_size: int, world_size: int) -> None:
    """Raise InputError where a global batch cannot be divided evenly."""
    if batch_size % world_size:
        raise InputError(
            f"data.batch_size: expected a multiple of the {world_size} processes, since it is the global batch, "
            f"found {batch_size}; choose {batch_size // world_size * world_size or world_size} "
            f"or {(batch_size // world_size + 1) * world_size}"
        )
