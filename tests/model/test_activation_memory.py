"""The estimate of the activation memory agrees with the memory that the network keeps."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from upfield.model.activation_memory import LEAST_SLICES, MemoryPlan, activation_bytes, equal_parts, plan_memory
from upfield.model.amir import Amir, AmirConfig, Checkpointing

LEVELS: tuple[Checkpointing, ...] = get_args(Checkpointing)
GIB = 2**30


def kept_bytes(config: AmirConfig, checkpointing: Checkpointing, size: int) -> int:
    """Return the bytes that the forward pass of one slice keeps for the backward pass, counting each storage once."""
    network = Amir(config).train()
    network.set_checkpointing(checkpointing)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        network(torch.rand(1, 1, size, size))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("checkpointing", LEVELS)
def test_the_estimate_agrees_with_the_memory_kept(checkpointing: Checkpointing) -> None:
    config = AmirConfig(dim=16, num_blocks=(2, 2, 2, 1))
    # The difference between two sizes excludes the half-precision copies of the weights, whose size is constant.
    small, large = (kept_bytes(config, checkpointing, size) for size in (32, 64))
    estimates = [activation_bytes(config, (size, size), 1, 2, checkpointing) for size in (32, 64)]
    assert estimates[1] - estimates[0] == pytest.approx(large - small, rel=0.15)


def test_a_batch_of_32_whole_slices_of_the_published_network_fits_in_80_gb() -> None:
    needs = [activation_bytes(AmirConfig(), (221, 200), 32, 2, checkpointing) for checkpointing in LEVELS]
    assert needs == sorted(needs, reverse=True)
    assert plan_memory(AmirConfig(), (221, 200), [32], 2, 80 * GIB).checkpointing == "selective"
    plan = plan_memory(AmirConfig(), (221, 200), equal_parts(32), 2, 80 * GIB)
    assert (plan.checkpointing, plan.micro_batch) == ("none", 16)


@pytest.mark.parametrize(
    ("batch", "value_bytes", "memory", "expected"),
    [(4, 2, 80, "none"), (4, 2, 16, "selective"), (4, 4, 16, "full"), (4, 2, 8, "full")],
)
def test_the_least_checkpointing_that_fits_is_chosen(
    batch: int, value_bytes: int, memory: int, expected: Checkpointing
) -> None:
    plan = plan_memory(AmirConfig(), (221, 200), equal_parts(batch), value_bytes, memory * GIB)
    assert (plan.checkpointing, plan.micro_batch) == (expected, batch)


def test_a_batch_that_fits_nowhere_whole_is_split_in_the_last_resort_too() -> None:
    assert plan_memory(AmirConfig(), (221, 200), equal_parts(32), 2, 8 * GIB) == MemoryPlan("full", 16)
    assert plan_memory(AmirConfig(), (221, 200), equal_parts(32), 2, GIB) == MemoryPlan("full", 4)


@pytest.mark.parametrize("batch", [1, 4, 9, 30, 32])
def test_parts_divide_a_batch_evenly_and_are_not_small(batch: int) -> None:
    parts = equal_parts(batch)
    assert parts == sorted(set(parts), reverse=True)
    assert parts[0] == batch
    assert all(batch % part == 0 and part >= min(batch, LEAST_SLICES) for part in parts)
