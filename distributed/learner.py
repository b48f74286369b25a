"""The network, its optimizer, the average of its weights, and the loss scaler: the state that training changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from upfield.common.allocator import keep_freed_memory
from upfield.common.errors import InputError
from upfield.distributed.agreement import sum_over_processes
from upfield.distributed.checkpoint import AVERAGE, OPTIMIZER
from upfield.distributed.configuration import OptimConfig, TrainConfig
from upfield.distributed.weight_average import WeightAverage
from upfield.model.activation_memory import MemoryPlan, equal_parts, plan_memory
from upfield.model.amir import Amir
from upfield.model.configuration import Checkpointing
from upfield.model.weights import MODEL, read_weights
from upfield.sharding.shardset.manifest import Manifest

# Checkpoints hold whole tensors on the CPU, even if training splits them, so that any number of processes can resume.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Learner:
    """The state that a checkpoint holds in addition to the progress."""

    network: Amir
    """The network, without the wrappers of Accelerate."""
    optimizer: Optimizer
    """The optimizer, without the wrapper of Accelerate."""
    average: WeightAverage | None
    """Moving average of the network's weights, if the run keeps one."""
    scaler: torch.amp.GradScaler | None
    """Loss scaler, if the run trains in fp16."""

    def state(self) -> dict[str, Any]:
        """Return the whole state as tensors on the CPU, on the main process. Collective: ALL ranks call it."""
        average = {}
        if self.average is not None:
            with self.average.swapped_in():
                average = self.weights()
        optimizer = get_optimizer_state_dict(self.network, self.optimizer, options=WHOLE)
        scaler = self.scaler.state_dict() if self.scaler is not None else {}
        return {"weights": self.weights(), "average": average, "optimizer": optimizer, "scaler": scaler}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights as whole tensors of the network's shapes on the CPU, on the main process.

        Collective: ALL ranks call it.
        """
        state: dict[str, Any] = get_model_state_dict(self.network, options=WHOLE)
        # On a CPU, these tensors share the parameters' memory, which training continues to change.
        on_cpu = next(self.network.parameters()).device.type == "cpu"
        return {name: tensor.clone() for name, tensor in state.items()} if on_cpu else state

    def load(self, folder: Path) -> None:
        """Load the state from a checkpoint. Collective: ALL ranks call it.

        Raises:
            InputError: the weights of the checkpoint do not fit the network.
        """
        try:
            self._load(folder)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{folder}: the weights do not fit the configured model: {reason} "
                "Use the model sizes of the checkpoint, or choose another --run.out."
            ) from error

    def _load(self, folder: Path) -> None:
        if self.average is not None:
            with self.average.swapped_in():
                # If the checkpoint holds no average, the average starts at the weights.
                file = folder / AVERAGE
                self._load_weights(read_weights(file if file.is_file() else folder / MODEL))
        self._load_weights(read_weights(folder / MODEL))
        saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        set_optimizer_state_dict(self.network, self.optimizer, saved["optimizer"], options=WHOLE)
        if self.scaler is not None and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])

    def _load_weights(self, weights: dict[str, Any]) -> None:
        set_model_state_dict(self.network, weights, options=WHOLE)


def build_network(
    config: TrainConfig, manifest: Manifest, accelerator: Accelerator, checkpointing: Checkpointing
) -> Amir:
    """Build the network on the device of this rank, with the same weights on every rank.

    Args:
        config: configuration of the run.
        manifest: manifest of the shard set.
        accelerator: process group and device.
        checkpointing: activation checkpointing.

    Raises:
        InputError: the file of `model.init` holds no weights, or weights that do not fit the configured model.
    """
    torch.manual_seed(config.run.seed)
    network = Amir(config.model.amir(manifest.context)).train()
    if config.model.init is not None:
        load_initial_weights(network, config.model.init)
    network.to(accelerator.device)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    network.set_checkpointing(checkpointing)
    network.use_kernels(config.run.kernels)
    if config.run.compile:
        network.compile_blocks()
    if accelerator.num_processes > 1:
        # The backward pass of this function sums the gradients, because data parallelism then averages them.
        network.sum_usage = sum_over_processes
        for weight in network.parameters():
            if weight.ndim == 4 and weight.shape[2:] == (1, 1):
                weight.register_hook(with_plain_strides)
    return network


def load_initial_weights(network: Amir, path: Path) -> None:
    """Load the weights of `model.init` into a network.

    Raises:
        InputError: the file holds no weights, or weights that do not fit the network.
    """
    try:
        weights = read_weights(path)
    except ValueError as error:
        raise InputError(f"{error} Name a weight file with --model.init.") from error
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"{path}: the weights do not fit the configured model. Check --model.preset and the other sizes: {error}"
        ) from error


def with_plain_strides(gradient: Tensor) -> Tensor:
    """Return the gradient `(out, in, 1, 1)` of a 1x1 convolution with the strides of its weight.

    The strides of the last two dimensions mean nothing, but data parallelism warns if they differ from the weight's.
    """
    strides = (gradient.shape[1], 1, 1, 1)
    return gradient.as_strided(gradient.shape, strides) if gradient.stride()[:2] == strides[:2] else gradient


def build_optimizer(config: OptimConfig, network: Amir) -> Optimizer:
    """Build Adam over the network's parameters."""
    # The fused version makes one pass over the weights and moments instead of one per operation.
    return torch.optim.Adam(network.parameters(), lr=config.lr, betas=config.betas, fused=True)


def choose_memory_plan(config: TrainConfig, manifest: Manifest, world_size: int, gpu_bytes: int | None) -> MemoryPlan:
    """Return the activation checkpointing and the number of slices per forward pass to train with.

    For the setting `auto`, this is the mode that recomputes least and fits in the GPU's memory, if necessary with a
    part of the share in each pass.

    Args:
        config: configuration of the run.
        manifest: manifest of the shard set.
        world_size: number of processes.
        gpu_bytes: free memory of the GPU in bytes; None on a CPU, where training rarely runs out of memory.
    """
    share, setting = config.data.batch_size // world_size, config.run.activation_checkpointing
    batch = min(config.data.micro_batch or share, share)
    if setting != "auto":
        return MemoryPlan(setting, batch)
    if gpu_bytes is None:
        return MemoryPlan("none", batch)
    _, height, width = manifest.sample_shape("low")
    size = config.data.augment.crop or (height, width)
    value_bytes = 4 if config.run.precision == "no" else 2
    batches = [batch] if config.data.micro_batch else equal_parts(share)
    return plan_memory(config.model.amir(manifest.context), size, batches, value_bytes, gpu_bytes)


def free_gpu_bytes(accelerator: Accelerator) -> int | None:
    """Return the free memory of the fullest GPU of the job in bytes, or None on CPUs. Collective: ALL ranks call it."""
    if accelerator.device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(accelerator.device)
    # PyTorch keeps the memory of earlier runs in this process, and this run can use it.
    free += torch.cuda.memory_reserved(accelerator.device) - torch.cuda.memory_allocated(accelerator.device)
    everywhere = accelerator.gather(torch.tensor([free], device=accelerator.device))
    assert isinstance(everywhere, Tensor)
    return int(everywhere.min())
