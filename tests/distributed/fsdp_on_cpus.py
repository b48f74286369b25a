"""Run by `accelerate launch` with a configuration of FSDP: the entry script, with FSDP on CPUs as it is on GPUs.

Accelerate itself falls back to plain data parallelism on CPUs, without a word.
"""

import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from upfield.distributed import assembly
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.train import main

make_accelerator = assembly.make_accelerator


def with_fsdp(config: TrainConfig, out: Path) -> Accelerator:
    accelerator = make_accelerator(config, out)
    accelerator.state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
    accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


if __name__ == "__main__":
    assembly.make_accelerator = with_fsdp
    sys.exit(main())
