"""The schema of a training configuration. This module does not import torch, so that `--help` answers at once.

The defaults are those of the report that this project follows: Adam 2e-4, L1 + 0.001 * load loss, batch 4, 60 epochs.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from upfield.common.addresses import runs_command
from upfield.common.ranges import Range, check_range
from upfield.model.configuration import AmirConfig, LossConfig, Preset
from upfield.sharding.shardset.configuration import AccessConfig

# The shares of a mix are written as decimals, so they may not add up to 1 exactly.
SHARE_TOLERANCE = 1e-5


def divisors_of(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


@dataclass(frozen=True)
class DegradeConfig:
    """Degradation of the stored low field, drawn again whenever a sample is read. By default there is none. Each value
    is a range [least, most] from which a number is drawn for each sample; all slices of a sample share it."""

    gamma: Range = (1.0, 1.0)
    """Exponent of the intensities in [0, 1], for example [0.8, 1.25]. Above 1, dark tissue becomes darker."""
    curve: Range = (0.0, 0.0)
    """Largest relative change of slope of a smooth, monotone curve that is applied to the intensities after gamma, for
    example [0, 0.4]. Bright stays brighter than dark."""
    bias: Range = (0.0, 0.0)
    """Standard deviation of the logarithm of a smooth field by which the slice is multiplied, for example [0, 0.15]."""
    blur_pixels: Range = (0.0, 0.0)
    """Standard deviation of a Gaussian blur, in pixels, for example [0, 1]. It is drawn for each of the two axes."""
    noise_std: Range = (0.0, 0.0)
    """Standard deviation of the noise in each channel of the receiver, as a fraction of the intensity range, for
    example [0, 0.03]. The noise is Rician: it makes air brighter."""
    noise_spacing_pixels: Range = (1.5, 5.0)
    """Distance in pixels between the points at which the noise is drawn before it is interpolated, at least 1. It is
    drawn for each of the three axes. It stands for the size of the scanner's voxels, over which noise is correlated."""

    def __post_init__(self) -> None:
        """Check that each range is ordered and within its bounds."""
        bounds = {"gamma": (0.1, 10), "curve": (0, 1), "bias": (0, 1), "blur_pixels": (0, 10), "noise_std": (0, 1)}
        for name, (least, most) in (bounds | {"noise_spacing_pixels": (1, 50)}).items():
            check_range(f"data.augment.degrade.{name}", getattr(self, name), least, most)


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training pairs, different in each epoch. By default there is none."""

    crop: tuple[int, int] | None = None
    """Height and width of a random crop, in pixels. Cropping saves time and memory. However, the network computes its
    routing from the whole input, so it sees less in training on crops than later, when it restores whole slices."""
    shift_pixels: int = 0
    """Maximum in-plane shift in each direction, in pixels."""
    intensity_jitter: float = 0.0
    """Maximum relative change of the low-field intensity scale, and maximum change of the logarithm of its gamma. A
    value of 0.1 is mild."""
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    """Degradation of the low field, after the changes above."""

    def __post_init__(self) -> None:
        """Check that the crop size, the shift and the jitter are in range."""
        if self.crop is not None and min(self.crop) < 9:
            raise ValueError(f"data.augment.crop: expected at least 9 x 9, found {self.crop[0]} x {self.crop[1]}.")
        if self.shift_pixels < 0:
            raise ValueError(f"data.augment.shift_pixels: expected at least 0, found {self.shift_pixels}.")
        if not 0 <= self.intensity_jitter < 1:
            raise ValueError(
                f"data.augment.intensity_jitter: expected a number from 0 to below 1, found {self.intensity_jitter}."
            )


@dataclass(frozen=True)
class MixConfig:
    """Shares of classes of samples, either by kind or by cohort. By default, each sample is visited once an epoch."""

    kind: dict[str, float] | None = None
    """Share of each kind, for example `{real: 0.5, synthetic: 0.5}`. The shares add up to 1."""
    cohort: dict[str, float] | None = None
    """Share of each cohort. The shares add up to 1, and cohorts without a share are not read."""
    per: Literal["batch", "epoch"] | None = None
    """What has these shares, to within one sample: each global batch, which is the default, or only the epoch as a
    whole. An epoch has as many steps as without a mix, so it repeats samples of some classes and reads only a part of
    others."""

    @property
    def by(self) -> Literal["kind", "cohort"]:
        """Name of the field that holds the shares."""
        return "cohort" if self.cohort is not None else "kind"

    @property
    def shares(self) -> dict[str, float] | None:
        """Share of each class; None without a mix."""
        return self.cohort if self.cohort is not None else self.kind

    def to_record(self) -> dict[str, Any]:
        """Return what a checkpoint records of the mix: nothing without a mix, and equal values for equal orders."""
        if not self.shares:
            return {}
        shares = {name: self.shares[name] for name in sorted(self.shares) if self.shares[name] > 0}
        return {self.by: shares, "per": self.per or "batch"}

    def __post_init__(self) -> None:
        """Check that there are shares by kind or by cohort, and that they add up to 1."""
        if self.kind is not None and self.cohort is not None:
            raise ValueError("data.mix: kind and cohort cannot be combined. Set the shares of one of them.")
        if self.shares is None:
            if self.per is not None:
                raise ValueError(
                    f"data.mix.per: {self.per} has no effect without shares. Set data.mix.kind or .cohort."
                )
            return
        if negative := [name for name, share in self.shares.items() if share < 0]:
            share = self.shares[negative[0]]
            raise ValueError(f"data.mix.{self.by}.{negative[0]}: expected a share from 0 to 1, found {share}.")
        if not abs((total := sum(self.shares.values())) - 1) <= SHARE_TOLERANCE:
            listed = ", ".join(f"{name} {share:g}" for name, share in self.shares.items()) or "no shares"
            raise ValueError(
                f"data.mix.{self.by}: expected shares that add up to 1, found {listed}, which add up to {total:g}."
            )


@dataclass(frozen=True)
class DataConfig(AccessConfig):
    """Where the samples come from and how they are batched."""

    part = "data."
    shards: str | Path
    """Shard set: a folder or an address (`s3://`, `gs://`, `https://`, or another scheme that an installed fsspec
    package supports). A list of training shards with braces, such as `https://host/set/train/{000000..000157}.tar`,
    limits training to these shards; the manifest and the validation split are found beside the folder `train`."""
    batch_size: int = 4
    """Number of samples in a *global* batch, which is divided evenly among the processes."""
    micro_batch: int | None = None
    """Number of slices per forward pass. Each process accumulates the gradients over its share of the global batch. By
    default, one pass processes the whole share. There is one exception: on a GPU whose memory is too small for that, if
    `run.activation_checkpointing` is `auto`, each pass processes the largest equal part of at least 4 slices that fits.
    The load loss is computed separately for each pass and is not linear in the batch, so smaller passes change its
    value. To train alike on GPUs of any size and number, choose another value of `run.activation_checkpointing`."""
    reader: Literal["exact", "webdataset"] = "exact"
    """How samples are read. `exact` visits the samples in an order that depends only on the seed and the epoch.
    `webdataset` streams whole shards through the webdataset library: it divides the shards among the processes and
    their threads, shuffles the shards, and mixes samples in a buffer. It needs a smaller cache, and suits clusters that
    are built around this library. It does not keep the exact order, because each epoch leaves out some
    samples and repeats as many. A run that resumes in the middle of an epoch reads the rest of the epoch in another
    order, and training depends on the number of processes."""
    shuffle_buffer: int = 1000
    """Number of samples in the buffer in which each thread of the webdataset reader mixes samples. With more, the
    samples are mixed better. A sample with two slices of 221 x 200 takes 0.18 MB, so the default takes 0.18 GB per
    thread. The exact reader has no such buffer."""
    window_shards: int = 16
    """Number of shards whose samples are shuffled together, in all groups together. With more shards, the samples are
    mixed better. With fewer, a smaller part of a remote set is needed at a time. Each group has at least one shard."""
    groups: int | None = None
    """Number of groups to which the shards are dealt. Each global batch takes an equal number of samples from each
    group, and a node downloads only the shards of the groups from which its processes read. If the number of nodes
    divides the number of groups, each shard of a remote set is downloaded by one node, and a later epoch finds it in
    the cache of the same node. The number of groups divides the batch size and changes the order of the samples, but
    the order does not depend on the number of processes. The default is 1 for a folder. For an address, it is the
    largest power of two that divides the batch size and is at most `window_shards`; for an odd batch size, the largest
    divisor that is at most `window_shards`."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Shares of real and synthetic samples, or of cohorts."""
    num_workers: int | None = None
    """Number of threads per rank that read batches in advance; the order of the samples does not depend on it. The
    default is 2 on a GPU, which would otherwise wait for the disk, and 0 on a CPU, where such threads would slow down
    training."""
    prefetch: int = 4
    """Number of batches that each thread reads in advance. A larger number bridges the pauses of a slow disk but takes
    more memory."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random augmentation of training pairs."""
    trace: Path | None = None
    """File for the trace. It has one JSON line per step, with the epoch, the step and the keys of the samples consumed,
    in global order."""

    def __post_init__(self) -> None:
        """Check that the numbers are in range."""
        limits = (("batch_size", 1), ("micro_batch", 1), ("window_shards", 1), ("groups", 1), ("num_workers", 0))
        for name, least in (*limits, ("prefetch", 1), ("shuffle_buffer", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"data.{name}: expected at least {least}, found {value}.")
        if self.groups is not None and self.batch_size % self.groups:
            raise ValueError(
                f"data.groups: expected a divisor of data.batch_size {self.batch_size}, that is "
                f"{', '.join(map(str, divisors_of(self.batch_size)))}, found {self.groups}."
            )
        super().__post_init__()
        self._refuse_bad_reader()

    def _refuse_bad_reader(self) -> None:
        """Raise ValueError if shards would run a command, or if a setting of the exact order cannot have an effect."""
        exact = {
            "groups": self.groups is not None,
            "mix": bool(self.mix.shares),
            "fetch samples": self.fetch == "samples",
        }
        if self.reader == "webdataset" and (name := next((name for name, is_set in exact.items() if is_set), None)):
            raise ValueError(
                f"data.{name}: this setting belongs to the exact reader and cannot be combined with data.reader "
                f"webdataset. Leave out --data.{name}, or choose --data.reader exact."
            )
        if runs_command(str(self.shards)):
            raise ValueError(
                f"data.shards: {self.shards} is a command, and shards must not run commands. Name addresses, and "
                "their command in --data.fetch_command, such as s5cmd cat {url}."
            )


@dataclass(frozen=True)
class ModelConfig:
    """The network to train. The number of its input channels follows from the shard set's context."""

    preset: Preset = "official"
    """Preset of the network's sizes. The fields below override individual sizes."""
    dim: int | None = None
    """Number of channels at full resolution. By default, this is the preset's value."""
    num_blocks: tuple[int, int, int, int] | None = None
    """Number of transformer blocks per level. By default, these are the preset's values."""
    num_refinement_blocks: int | None = None
    """Number of transformer blocks after the decoder. By default, this is the preset's value."""
    heads: tuple[int, int, int, int] | None = None
    """Number of attention heads per level. By default, these are the preset's values."""
    num_tokens: int | None = None
    """Number of tokens in the routing dictionary. By default, this is the preset's value."""
    num_experts: int | None = None
    """Number of experts per spatial routing module. By default, this is the preset's value."""
    init: Path | None = None
    """File with the initial weights: a safetensors file or a published `.pth` file."""

    def __post_init__(self) -> None:
        """Check that a network of these sizes can be built."""
        self.amir(context=0)

    def amir(self, context: int) -> AmirConfig:
        """Return the network's sizes for a shard set with `context` neighbouring slices on each side."""
        names = ("dim", "num_blocks", "num_refinement_blocks", "heads", "num_tokens", "num_experts")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(AmirConfig.preset(self.preset), in_channels=1 + 2 * context, **given)


@dataclass(frozen=True)
class OptimConfig:
    """The Adam optimizer and its learning rate."""

    lr: float = 2e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's moment estimates."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine down to `final_lr` at the last step."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises linearly from zero to `lr`."""
    final_lr: float = 1e-6
    """Learning rate at the end of the `cosine` schedule."""
    clip_norm: float | None = None
    """Gradient norm above which the gradient is clipped. By default, it is not clipped."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, for example 0.999. If it is set, validation and the best
    model use the average. By default, no average is kept."""

    def __post_init__(self) -> None:
        """Check that the numbers are in range."""
        if not self.lr > 0:
            raise ValueError(f"optim.lr: expected a positive rate, found {self.lr}.")
        if self.final_lr < 0:
            raise ValueError(f"optim.final_lr: expected at least 0, found {self.final_lr}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas: expected two numbers from 0 to below 1, found {self.betas}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optim.clip_norm: expected a positive norm or null, found {self.clip_norm}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"optim.ema_decay: expected a number between 0 and 1 or null, found {self.ema_decay}.")
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps: expected at least 0, found {self.warmup_steps}.")


@dataclass(frozen=True)
class RunSettings:
    """Length of a run, and how often it saves, validates and logs."""

    epochs: int = 60
    """Number of passes over the training split."""
    max_steps: int | None = None
    """Maximum number of steps. The run ends after `epochs` or `max_steps`, whichever comes first."""
    max_minutes: float | None = None
    """Maximum number of minutes that one start of the run trains, with the validations in between. It then saves a
    checkpoint, validates, and exits with 0, and the same command continues the run. The learning rate still follows
    `epochs` and `max_steps`. By default, there is no limit."""
    precision: Literal["bf16", "fp16", "no"] = "bf16"
    """Mixed precision; `no` means float32, never TF32. Use bf16 if the hardware supports it (GPUs since Ampere,
    CPUs with AVX512-BF16 or AMX), because bf16 needs no loss scaling and was fastest on such CPUs. Otherwise, use fp16
    on a GPU and `no` on a CPU."""
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """Activations that the backward pass recomputes instead of keeping them in memory. `selective` recomputes
    everything after the 1x1 convolutions of each block and needs half the memory. `full` recomputes whole blocks and
    needs a ninth of the memory. `auto` chooses the setting that recomputes least and still fits into the GPU's memory,
    if necessary with several passes per step (`data.micro_batch`). A resumed run repeats its choice on the same
    hardware. On a CPU, `auto` means `none`."""
    deterministic: bool = False
    """Use only operators that return the same bits each time, so that a run on a GPU can be repeated bit for bit on the
    same number and kind of GPUs with the same software. Such operators may be slower. On a CPU, runs are repeatable
    without this option."""
    compile: bool = False
    """Compile the network's blocks with torch.compile. This is off by default: on two CPU cores, compiling the
    `official` preset took minutes, and training was slower afterwards."""
    kernels: Literal["auto", "on", "off"] = "auto"
    """Triton kernels for the network's blocks on GPUs. `auto` uses the kernels that were shown to be right and faster
    on this kind of GPU, `on` uses all kernels, and `off` uses PyTorch's operators only. On a CPU, `auto` uses none.
    With precision `no` or heads of more than 120 channels, channel attention always uses PyTorch's operators."""
    seed: int = 0
    """Seed of the initial weights, the sample order, the augmentation and the gating noise."""
    resume: str = "auto"
    """Where to start: `auto` resumes from the last checkpoint in `out` if there is one, `none` starts from the
    beginning, and a path resumes from the checkpoint at that path."""
    checkpoint_every: int | None = None
    """Number of steps between checkpoints. By default, a checkpoint is saved at the end of each epoch."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep. Older checkpoints are deleted."""
    validate_every: int | None = None
    """Number of steps between validations. By default, the model is validated at the end of each epoch."""
    validation_slices: int | None = None
    """Number of slices of each validation during training. They are spread over the scans of the validation split and
    are always the same, and the best model is chosen on them. At the end, the best model is measured on the whole
    split. By default, each validation measures the whole split."""
    log_every: int = 10
    """Number of steps between log lines."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Accelerate trackers that receive the log: tensorboard, wandb, mlflow and others. Only tensorboard is installed by
    default."""
    pictures: int = 4
    """Number of validation slices that are sent to the trackers as pictures, each with the low field, the restoration
    and the high field."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do if the loss or the gradient is not finite: stop the run, or skip the batch."""
    max_skips: int = 10
    """Maximum number of batches that a run may skip. If another batch would have to be skipped, the run stops."""
    stopped_code: int = 0
    """Exit code of a run that was stopped early by a signal or Ctrl-C. A code other than 0, for example 75, tells a
    scheduler to start the run again."""
    timeout_s: float = 600.0
    """Time in seconds that a process waits for the other processes in a collective operation before the job fails."""
    validation_batch_size: int = 4
    """Number of slices per batch on each process in validation."""

    def __post_init__(self) -> None:
        """Check that the numbers are in range and that the exit code has no other meaning."""
        for name in ("seed", "pictures", "max_skips"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name}: expected at least 0, found {getattr(self, name)}.")
        if not 0 <= self.stopped_code < 126 or self.stopped_code in (1, 2):
            raise ValueError(
                f"run.stopped_code: expected 0 or 3 to 125 (other codes are reserved), found {self.stopped_code}."
            )
        if not self.timeout_s > 0:
            raise ValueError(f"run.timeout_s: expected a positive time, found {self.timeout_s}.")
        if self.max_minutes is not None and not 0 < self.max_minutes < math.inf:
            raise ValueError(f"run.max_minutes: expected a positive number of minutes, found {self.max_minutes}.")
        positive = ("epochs", "max_steps", "checkpoint_every", "keep_checkpoints", "validate_every", "log_every")
        for name in (*positive, "validation_batch_size", "validation_slices"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"run.{name}: expected at least 1, found {value}.")


@dataclass(frozen=True)
class RunConfig(RunSettings):
    """Length and output of a run, and how often it saves, validates and logs."""

    out: Path = field(kw_only=True)
    """Output folder of the run."""


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training run without its output folder, which the trials of a sweep share."""

    data: DataConfig
    """Samples and batches."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    run: RunSettings = field(default_factory=RunSettings)
    """The run."""
    processes: int = 1
    """Number of processes to start on this machine. It has no effect under `accelerate launch` or torchrun, which start
    the processes themselves."""

    def __post_init__(self) -> None:
        """Check that there is at least one process."""
        if self.processes < 1:
            raise ValueError(f"processes: expected at least 1, found {self.processes}.")


@dataclass(frozen=True)
class TrainConfig(TrainSettings):
    """Train AMIR on a shard set."""

    run: RunConfig = field(kw_only=True)
    """The run."""
