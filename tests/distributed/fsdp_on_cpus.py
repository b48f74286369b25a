"""The entry script with FSDP on CPUs, to be started by `accelerate launch` with an FSDP configuration.

On CPUs, Accelerate would silently use plain data parallelism instead of FSDP. The process group is therefore formed
first and declared one of GPUs, so that Accelerate takes the same path as on GPUs.

At its end, the script prints the types of tensors inside the network, as one line of JSON.
"""

import json
import sys
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from upfield.distributed import loop
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.train import main
from upfield.distributed.training_run import TrainingRun
from upfield.model.routing import SpatialMixture

TYPES: dict[str, str] = {}
open_run, project = loop.open_run, SpatialMixture._project
REDUCTIONS = ("reduce_scatter_tensor", "reduce_scatter_single")  # Newer versions of torch call the second one.


def note(name: str, tensor: Any) -> None:
    TYPES[name] = str(tensor.dtype).removeprefix("torch.")


def watched(config: TrainConfig) -> TrainingRun:
    run = open_run(config)
    assert isinstance(run.wrapped, FSDPModule)
    network = run.learner.network

    def before(_: object, inputs: Any) -> None:
        note("low", inputs[0])
        if len(inputs) > 1:
            note("noise", inputs[1][0])

    network.register_forward_pre_hook(before)
    network.register_forward_hook(lambda *call: note("restored", call[-1][0]))
    network.latent.register_forward_hook(lambda *call: note("features", call[-1]))
    return run


def gating(x: Tensor, instruction: Tensor, weight: Tensor) -> Tensor:
    logits = project(x, instruction, weight)
    note("gating", logits)
    return logits


def noting(reduce_scatter: Any) -> Any:
    def reduce(output: Any, input: Any, *rest: Any, **named: Any) -> Any:  # noqa: A002, torch names it so
        note("reduced gradient", input)
        return reduce_scatter(output, input, *rest, **named)

    return reduce


if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    loop.open_run = watched
    SpatialMixture._project = staticmethod(gating)
    for name in REDUCTIONS:
        if hasattr(torch.distributed, name):
            setattr(torch.distributed, name, noting(getattr(torch.distributed, name)))
    code = main()
    print(json.dumps(TYPES))
    sys.exit(code)
