"""Train a learner whose weights are split over processes, in each rank of a job.

It trains a few steps, saves a checkpoint in between, and resumes from the checkpoint in a second learner. It
writes the final states of both learners, and the final state of a learner that trains in a single process.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from upfield.distributed.checkpoint import TrainingProgress, save_checkpoint
from upfield.distributed.learner import Learner
from upfield.distributed.weight_average import WeightAverage
from upfield.model.amir import Amir, AmirConfig, BlockStack, noise_shapes

STEPS, SAVED_AFTER = 4, 2
SIZE = (32, 24)


def learner(split: bool) -> Learner:
    torch.manual_seed(0)
    network = Amir(AmirConfig.preset("tiny")).train()
    if split:
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for module in [module for module in network.modules() if isinstance(module, BlockStack)]:
            fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    return Learner(network, optimizer, WeightAverage(network, 0.9), None)


def train(learner: Learner, steps: range) -> None:
    """Train on the same slice in every process, so that any number of processes must agree."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        low, high = (torch.rand(1, 1, *SIZE, generator=generator) for _ in range(2))
        shapes = noise_shapes(learner.network.config, *SIZE)
        noise = [torch.randn(1, *shape, generator=generator) for shape in shapes]
        restored, load_loss = learner.network(low, noise)
        ((restored - high).abs().mean() + 0.001 * load_loss).backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        assert learner.average is not None
        learner.average.update(step)


def flat(state: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Flatten nested dictionaries, and return their tensors by joined name."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            tensors |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value.clone()
    return tensors


def main(out: Path) -> None:
    torch.distributed.init_process_group("gloo")
    main_process = torch.distributed.get_rank() == 0
    split = learner(split=True)
    train(split, range(SAVED_AFTER))
    state = split.state()
    if main_process:
        save_checkpoint(out, split.network.config, state, TrainingProgress(step=SAVED_AFTER), keep=1)
    torch.distributed.barrier()
    resumed = learner(split=True)
    resumed.load(out / "checkpoints" / "last")
    whole = learner(split=False)
    whole.load(out / "checkpoints" / "last")
    for each in (split, resumed, whole):
        train(each, range(SAVED_AFTER, STEPS))
    states = {"split": split.state(), "resumed": resumed.state()}
    alone = learner(split=False)
    train(alone, range(STEPS))
    # Gathering a state is a collective call of all processes, even if nothing is split.
    states |= {"whole": whole.state(), "alone": alone.state()}
    if main_process:
        for name, state in states.items():
            save_file(
                flat({key: state[key] for key in ("weights", "average", "optimizer")}), out / f"{name}.safetensors"
            )
    local = next(split.network.parameters()).to_local()  # pyright: ignore[reportAttributeAccessIssue]
    assert local.numel() < next(alone.network.parameters()).numel()
    torch.distributed.destroy_process_group()
