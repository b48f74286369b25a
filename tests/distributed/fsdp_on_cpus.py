"""The entry script with FSDP on CPUs, to be started by `accelerate launch` with an FSDP configuration.

On CPUs, Accelerate would silently use plain data parallelism instead of FSDP.
"""

import sys

from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from upfield.distributed import training_run
from upfield.distributed.configuration import RunConfig
from upfield.distributed.train import main

make_accelerator = training_run.make_accelerator


def with_fsdp(config: RunConfig, world_size: int) -> Accelerator:
    accelerator = make_accelerator(config, world_size)
    accelerator.state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
    accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


if __name__ == "__main__":
    training_run.make_accelerator = with_fsdp
    sys.exit(main())
