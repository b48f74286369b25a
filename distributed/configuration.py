"""The schema of a training configuration. It does not import torch, so that `--help` answers at once.

The defaults are those of the report that we follow: Adam 2e-4, L1 + 0.001 * load loss, batch 4, 60 epochs.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from upfield.model.configuration import AmirConfig, LossConfig


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training pairs, different in each epoch; none by default."""

    crop: tuple[int, int] | None = None
    """Height and width of a random crop, in pixels. A crop saves time and memory, but the network computes its routing
    from the whole slice, so it trains on less than it sees later."""
    shift_pixels: int = 0
    """Largest in-plane shift in each direction, in pixels."""
    intensity_jitter: float = 0.0
    """Largest relative change of the low field's scale and largest change of its log gamma; 0.1 is mild."""

    def __post_init__(self) -> None:
        """Check that crops can be cut and that changes leave an image."""
        if self.crop is not None and min(self.crop) < 9:
            raise ValueError(f"data.augment.crop: expected at least 9 x 9, found {self.crop[0]} x {self.crop[1]}.")
        if self.shift_pixels < 0:
            raise ValueError(f"data.augment.shift_pixels: expected at least 0, found {self.shift_pixels}.")
        if not 0 <= self.intensity_jitter < 1:
            raise ValueError(
                f"data.augment.intensity_jitter: expected a number from 0 to below 1, found {self.intensity_jitter}."
            )


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from, and how they are batched."""

    shards: str | Path
    """The shard set: a folder or an address (`s3://`, `gs://`, `https://`, or another scheme of an installed fsspec
    package)."""
    batch_size: int = 4
    """Samples in a *global* batch, which the processes share evenly."""
    micro_batch: int | None = None
    """Slices per forward pass on each process, which accumulates gradients over its share of the batch. By default the
    whole share is one pass. Each pass has its own load loss, which is not linear in the batch."""
    window_shards: int = 16
    """Shards whose samples are shuffled together. More shards mix better; fewer need less of a remote set at once."""
    num_workers: int = 0
    """Threads per rank that read ahead. Reading by offset keeps up with training without any."""
    prefetch: int = 4
    """Batches that each thread reads ahead. More bridge the pauses of a slow disk, and take more memory."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of training pairs."""
    trace: Path | None = None
    """File for the trace: a JSON line per step with epoch, step and the keys consumed, in global order."""
    cache_dir: Path | None = None
    """Folder that keeps remote shards for all processes of the node and for later runs. Use a local disk, because a
    network drive is no faster than the store. `~/.cache/upfield/shards` by default."""
    cache_bytes: int = 50_000_000_000
    """Most bytes that `cache_dir` may hold; the least recently used shards are evicted first. Two windows must fit. A
    set that fits completely is fetched only once, otherwise shards are fetched again in each epoch. The default is
    twenty windows of usual shards (16 of 150 MB), which most nodes have free."""
    fetch_retries: int = 5
    """Retries for a remote shard that fails or differs from the manifest, after pauses that double from half a second.
    More survive longer outages; fewer stop sooner if a shard is lost."""
    fetch_timeout_s: float = 60.0
    """Seconds without a byte after which a transfer is tried again. Shorter timeouts notice stalls sooner; longer ones
    tolerate stores that are slow to respond."""

    def __post_init__(self) -> None:
        """Check that numbers are large enough to train."""
        limits = (("batch_size", 1), ("micro_batch", 1), ("window_shards", 1), ("num_workers", 0), ("prefetch", 1))
        for name, least in (*limits, ("cache_bytes", 1), ("fetch_retries", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"data.{name}: expected at least {least}, found {value}.")
        if not self.fetch_timeout_s > 0:
            raise ValueError(f"data.fetch_timeout_s: expected a positive time, found {self.fetch_timeout_s}.")


@dataclass(frozen=True)
class ModelConfig:
    """The network to train. Its input channels follow from the shard set's context."""

    preset: Literal["official", "report", "tiny"] = "official"
    """Preset of the sizes, which the fields below override."""
    dim: int | None = None
    """Channels at full resolution. By default the preset's."""
    num_blocks: tuple[int, int, int, int] | None = None
    """Transformer blocks per level. By default the preset's."""
    num_refinement_blocks: int | None = None
    """Transformer blocks after the decoder. By default the preset's."""
    heads: tuple[int, int, int, int] | None = None
    """Attention heads per level. By default the preset's."""
    num_tokens: int | None = None
    """Dictionary tokens. By default the preset's."""
    num_experts: int | None = None
    """Experts per routing module. By default the preset's."""
    init: Path | None = None
    """Weights to start from: a safetensors file or a published `.pth`."""

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
    """Adam and its learning rate."""

    lr: float = 2e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's moment estimates."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine down to `final_lr` at the last step."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    final_lr: float = 1e-6
    """Learning rate at the end of `cosine`."""
    clip_norm: float | None = None
    """Gradient norm above which gradients are clipped. By default they are not."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, for example 0.999. Validation and the best model then use
    the average. By default there is none."""

    def __post_init__(self) -> None:
        """Check that the rates can train."""
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
class RunConfig:
    """Length and output of the run, and how often it saves, validates and logs."""

    out: Path
    """Folder of the run."""
    epochs: int = 60
    """Passes over the training split."""
    max_steps: int | None = None
    """Steps after which the run ends, if that is sooner."""
    precision: Literal["bf16", "fp16", "no"] = "bf16"
    """Mixed precision; `no` is float32. Use bf16 if the hardware supports it (GPUs since Ampere, CPUs with AVX512-BF16
    or AMX): there it was fastest, and it needs no loss scaling. Otherwise use fp16 on a GPU and `no` on a CPU."""
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """What is computed again for the gradient instead of being kept. `selective` recomputes what follows the 1x1
    convolutions of each block and needs half the memory. `full` recomputes whole blocks and needs a ninth. `auto` takes
    the least that fits the GPU's memory, and `none` on a CPU."""
    compile: bool = False
    """Compile the network's blocks with torch.compile. Off by default, because two CPU cores took minutes to compile
    `official` and then trained more slowly."""
    seed: int = 0
    """Seed of initial weights, order of samples, and gating noise."""
    resume: str = "auto"
    """`auto` resumes from the last checkpoint in `out`, if there is one. `none` starts from the beginning. A path
    resumes from that checkpoint."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. By default there is one at the end of each epoch."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep."""
    validate_every: int | None = None
    """Steps between validations. By default there is one at the end of each epoch."""
    log_every: int = 10
    """Steps between log lines."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Accelerate's trackers that receive the log: tensorboard, wandb, mlflow and others. Only tensorboard is installed
    by default."""
    pictures: int = 4
    """Validation slices that trackers show as pictures of low field, restoration and high field."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens if a loss or gradient is not finite: stop the run, or skip that batch."""
    max_skips: int = 10
    """Batches that a run may skip before it stops after all."""
    stopped_code: int = 0
    """Exit code of a run that a signal stopped before its end. A code other than 0, for example 75, tells a scheduler
    to start the run again."""
    timeout_s: float = 600.0
    """Seconds that a process waits for the others in a collective operation before the job fails."""
    validation_batch_size: int = 4
    """Slices per process in validation."""

    def __post_init__(self) -> None:
        """Check that numbers are large enough for a run and that the exit code has no other meaning."""
        for name in ("seed", "pictures", "max_skips"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name}: expected at least 0, found {getattr(self, name)}.")
        if not 0 <= self.stopped_code < 126 or self.stopped_code in (1, 2):
            raise ValueError(
                f"run.stopped_code: expected 0 or 3 to 125 (other codes have a meaning), found {self.stopped_code}."
            )
        if not self.timeout_s > 0:
            raise ValueError(f"run.timeout_s: expected a positive time, found {self.timeout_s}.")
        positive = ("epochs", "max_steps", "checkpoint_every", "keep_checkpoints", "validate_every", "log_every")
        for name in (*positive, "validation_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"run.{name}: expected at least 1, found {value}.")


@dataclass(frozen=True)
class TrainConfig:
    """Train AMIR on a shard set."""

    data: DataConfig
    """Samples and batches."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    run: RunConfig = field(kw_only=True)
    """The run."""
    processes: int = 1
    """Processes to start on this machine. Under `accelerate launch` or torchrun it has no effect."""

    def __post_init__(self) -> None:
        """Check that there is at least one process."""
        if self.processes < 1:
            raise ValueError(f"processes: expected at least 1, found {self.processes}.")
