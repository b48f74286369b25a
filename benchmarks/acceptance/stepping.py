"""Training outside and through `fit`: a bare step on one batch in memory, and runs on the shards."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from acceptance.report import Report
from upfield.distributed.checkpoint import TrainingProgress
from upfield.distributed.configuration import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from upfield.distributed.loop import fit
from upfield.model.amir import Amir, AmirConfig, noise_shapes
from upfield.model.configuration import LossConfig
from upfield.model.losses import restoration_loss

NEVER = 10**9
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
# The smallest network with each kind of layer, for runs that only have to be correct.
SMALLEST = ModelConfig(preset="tiny", num_blocks=(0, 0, 0, 1), num_refinement_blocks=1)


def make_compiling_cheap(device: str) -> None:
    """On a CPU, let torch.compile trace and differentiate, but write no code, which would take minutes."""
    if device == "cpu":
        torch.compile = partial(torch.compile, backend="aot_eager")


class BareStep:
    """A training step on one batch in memory: forward pass, loss, backward pass and Adam, without the loop."""

    def __init__(self, device: str, config: AmirConfig, batch: int, size: tuple[int, int], precision: str = "bf16"):
        """Build a network with seeded weights and draw a batch of random slices.

        Args:
            device: `cuda` or `cpu`.
            config: sizes of the network.
            batch: number of slices.
            size: height and width of the slices.
            precision: `bf16`, `fp16` or `no`.
        """
        torch.manual_seed(0)
        self.device, self.dtype, self.batch = device, DTYPES[precision], batch
        self.network = Amir(config).train().to(device)
        self.low = torch.rand(batch, config.in_channels, *size).to(device)
        self.high = torch.rand(batch, 1, *size).to(device)
        self.noise = [torch.randn(batch, *shape).to(device) for shape in noise_shapes(config, *size)]
        self.keep_casts = True
        """Whether autocast keeps the weights that it has cast for the rest of the step."""
        # In a captured graph, the number of steps must be on the device.
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, fused=True, capturable=device == "cuda")

    def loss(self) -> Tensor:
        """Compute the scalar loss of the batch."""
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device, self.dtype, enabled=enabled, cache_enabled=self.keep_casts):
            restored, load_loss = self.network(self.low, self.noise)
        return restoration_loss(restored, self.high, load_loss, LossConfig())[0]

    def __call__(self) -> Tensor:
        """Take a step and return its scalar loss."""
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def gradients(self, scale: float = 1.0) -> dict[str, Tensor]:
        """Compute the gradient of each parameter, without taking the step.

        Args:
            scale: factor of the loss in the backward pass, which keeps small gradients of fp16 from becoming zero.
        """
        (scale * self.loss()).backward()
        gradients = {name: p.grad / scale for name, p in self.network.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return gradients


def run_config(report: Report, name: str, model: ModelConfig, steps: int, batch: int, **settings: Any) -> TrainConfig:
    """Configure a run on the shards, with whole slices on a GPU and crops on a CPU.

    Args:
        report: report of the check.
        name: name of the run's folder.
        model: the network.
        steps: number of steps.
        batch: global batch size.
        settings: further settings, of `run` or, with the prefix `data_`, `optim_` or `loss_`, of these parts.
    """
    parts: dict[str, dict[str, Any]] = {"data": {}, "optim": {}, "loss": {}, "run": {}}
    for key, value in settings.items():
        part, _, rest = key.partition("_")
        parts[part if part in parts else "run"][rest if part in parts else key] = value
    data: dict[str, Any] = {"batch_size": batch, "augment": AugmentConfig(crop=report.pick(gpu=None, cpu=(32, 24)))}
    run: dict[str, Any] = {
        "out": report.work / name,
        "max_steps": steps,
        "epochs": NEVER,
        "log_every": 1,
        "validate_every": NEVER,
        "checkpoint_every": NEVER,
        "trackers": [],
        "pictures": 0,
        "keep_checkpoints": 9,
    }
    return TrainConfig(
        data=DataConfig(shards=report.shards, **(data | parts["data"])),
        model=model,
        loss=LossConfig(**parts["loss"]),
        optim=OptimConfig(**parts["optim"]),
        run=RunConfig(**(run | parts["run"])),
    )


def train(config: TrainConfig) -> TrainingProgress:
    """Train as configured, in a fresh state of Accelerate."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return fit(config)


def log_lines(config: TrainConfig, event: str = "train") -> list[dict[str, Any]]:
    """Read the lines of a run's log."""
    text = (config.run.out / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def checkpoint(config: TrainConfig, step: int) -> Path:
    """Return the folder of a run's checkpoint."""
    return config.run.out / "checkpoints" / f"step-{step:08d}"


def weights(config: TrainConfig, step: int, name: str = "model") -> dict[str, Tensor]:
    """Read the weights in a checkpoint, or with `average` their average."""
    return load_file(checkpoint(config, step) / f"{name}.safetensors")


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between tensors of the same names and shapes."""
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the root of the sum of squared differences between tensors of the same names and shapes."""
    assert first.keys() == second.keys()
    return sum((first[name].double() - second[name].double()).square().sum().item() for name in first) ** 0.5
