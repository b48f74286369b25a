"""Run by torchrun: a learner whose weights are split over the processes is saved whole, and goes on from what is whole.

With the name of a folder: train a few steps, save in the middle, take that over into a fresh learner, and write what
both end with beside what a single process computes.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from upfield.distributed.average import WeightAverage
from upfield.distributed.checkpoint import Learner, TrainingProgress, load_checkpoint, save_checkpoint
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
    """Train on the same slice everywhere, so that any number of processes must agree."""
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
    """Give all tensors of nested dictionaries under joined names."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value.clone()
    return found


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
    load_checkpoint(out / "checkpoints" / "last", resumed)
    whole = learner(split=False)
    load_checkpoint(out / "checkpoints" / "last", whole)
    for one in (split, resumed, whole):
        train(one, range(SAVED_AFTER, STEPS))
    states = {"split": split.state(), "resumed": resumed.state()}
    alone = learner(split=False)
    train(alone, range(STEPS))
    # Whole state is gathered by all processes of a group, also where nothing is split.
    states |= {"whole": whole.state(), "alone": alone.state()}
    if main_process:
        for name, found in states.items():
            save_file(
                flat({key: found[key] for key in ("weights", "average", "optimizer")}), out / f"{name}.safetensors"
            )
    local = next(split.network.parameters()).to_local()  # pyright: ignore[reportAttributeAccessIssue]
    assert local.numel() < next(alone.network.parameters()).numel()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
