"""Join the process group of a job, and check that a launcher has started the requested number of processes."""

import os
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

from upfield.common.errors import RunError
from upfield.distributed.configuration import RunConfig

ADVICE = "Use `accelerate launch --multi_gpu --num_processes N` or torchrun, and on CPUs set ACCELERATE_USE_CPU=true."


def expected_world_size() -> int:
    """Return the number of processes in the job, which is 1 without a launcher.

    On CPUs, `accelerate launch` silently starts one process, whatever number was requested. This case is recognised by
    the environment: the launcher exports MASTER_ADDR if more than one process was requested, and a real process group
    also has a WORLD_SIZE.

    Raises:
        RunError: several processes were requested from `accelerate launch`, but it started only this one.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # `accelerate launch` exports the precision for any number of processes.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise RunError(
            f"accelerate launch was asked for several processes (MASTER_ADDR is set) but started only one. {ADVICE}"
        )
    return 1


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
