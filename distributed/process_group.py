"""Join the process group of a job, and check that a launcher has started the requested number of processes."""

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DynamoBackend,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    TorchDynamoPlugin,
)
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

from upfield.common.errors import InputError, RunError
from upfield.common.stop_signals import StopRequest
from upfield.distributed.configuration import RunConfig

RESOLVE_S = 1.0
OF_A_LAUNCHER = "Launchers such as torchrun set all of these variables; to train in one process, unset WORLD_SIZE."
ADVICE = "Use `accelerate launch --multi_gpu --num_processes N` or torchrun, and on CPUs set ACCELERATE_USE_CPU=true."


def expected_world_size() -> int:
    """Return the number of processes in the job, which is 1 without a launcher.

    On CPUs, `accelerate launch` silently starts one process, whatever number was requested. This case is recognised by
    the environment: the launcher exports MASTER_ADDR if more than one process was requested, and a real process group
    also has a WORLD_SIZE.

    Raises:
        InputError: the variables of a launcher are incomplete, or their values are impossible.
        RunError: several processes were requested from `accelerate launch`, but it started only this one.
    """
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("MASTER_PORT", "29500")  # the usual port, which some launchers do not set
        return read_world_size(os.environ)
    # Without WORLD_SIZE, this is a single process, whatever an earlier launcher left in the environment.
    for name in ("RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    # `accelerate launch` exports the precision for any number of processes.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise RunError(
            f"accelerate launch was asked for several processes (MASTER_ADDR is set) but started only one. {ADVICE}"
        )
    return 1


def read_world_size(variables: Mapping[str, str]) -> int:
    """Read the number of processes from a launcher's variables, and check them.

    Raises:
        InputError: a variable is missing, or is not a number in its range.
    """
    size = _read_number(variables, "WORLD_SIZE", 1)
    names = ("RANK", "LOCAL_RANK") if size > 1 else tuple(name for name in ("RANK", "LOCAL_RANK") if name in variables)
    for name in names:
        _read_number(variables, name, 0, size)
    if (size > 1 or "LOCAL_RANK" in variables) and not variables.get("MASTER_ADDR"):
        raise InputError(f"WORLD_SIZE={size}, but MASTER_ADDR is not set. {OF_A_LAUNCHER}")
    return size


def _read_number(variables: Mapping[str, str], name: str, least: int, limit: int | None = None) -> int:
    text = variables.get(name, "")
    if not text:
        raise InputError(f"WORLD_SIZE={variables['WORLD_SIZE']}, but {name} is not set. {OF_A_LAUNCHER}")
    number = int(text) if text.isdecimal() else -1
    if number < least or (limit is not None and number >= limit):
        expected = f"at least {least}" if limit is None else f"a number from {least} to {limit - 1}"
        raise InputError(f"{name}: expected {expected} in this environment variable, found {text}. {OF_A_LAUNCHER}")
    return number


def wait_for_main_node(timeout_s: float, stop: StopRequest) -> None:
    """Wait until the name of the main node can be resolved: in a cluster, its container may still be starting.

    Args:
        timeout_s: longest time to wait, in seconds.
        stop: request that ends the wait.

    Raises:
        RunError: the name cannot be resolved in time.
        KeyboardInterrupt: a signal asked this process to stop.
    """
    name, deadline = os.environ["MASTER_ADDR"], time.monotonic() + timeout_s
    while True:
        try:
            socket.getaddrinfo(name, None)
            return
        except OSError as error:
            if stop.asked:
                raise KeyboardInterrupt from error
            if time.monotonic() > deadline:
                raise RunError(
                    f"MASTER_ADDR: {name} could not be resolved within {timeout_s:g} s (run.timeout_s). Check the "
                    "name, or raise --run.timeout_s."
                ) from error
        time.sleep(RESOLVE_S)


def make_accelerator(config: RunConfig, world_size: int) -> Accelerator:
    """Join the process group. Collective: ALL ranks call it.

    Args:
        config: part `run` of the configuration.
        world_size: number of processes in the job.

    Raises:
        RunError: the process group does not have `world_size` processes.
    """
    accelerator = Accelerator(
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(config.out), logging_dir=str(config.out)),
        # Accelerate does not prepare our loaders. If it did, each rank would still read its own batches because of this
        # setting; otherwise rank 0 would read for all ranks.
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        # A training step accumulates gradients itself (data.micro_batch) and compiles the network itself (run.compile).
        # Without these arguments, Accelerate would read other settings from variables.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(
            backend=DynamoBackend.NO, mode="default", fullgraph=False, use_regional_compilation=False
        ),
        fsdp_plugin=make_fsdp_plugin(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout_s))],
    )
    if accelerator.num_processes != world_size:
        raise RunError(f"expected {world_size} processes in one group, found {accelerator.num_processes}. {ADVICE}")
    return accelerator


def make_fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """Return the plugin that splits the weights over processes, if Accelerate's configuration asks for it.

    Weights, gradients, their reduction, inputs and outputs keep their types, as in plain data parallelism, and autocast
    alone decides what is computed in half precision. Without a policy, Accelerate would convert all of them.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    plugin = FullyShardedDataParallelPlugin()
    plugin.mixed_precision_policy = MixedPrecisionPolicy() if plugin.fsdp_version == 2 else MixedPrecision()
    return plugin
