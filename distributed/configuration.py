"""The schema of a training configuration; free of torch, so that `--help` answers at once.

The defaults are those of the report we follow: Adam 2e-4, L1 + 0.001 * load loss, batch 4, 60 epochs.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from upfield.model.configuration import AmirConfig, LossConfig


@dataclass(frozen=True)
class AugmentConfig:
    """How training pairs are changed, a different way in each epoch; nothing by default."""

    crop: tuple[int, int] | None = None
    """Height and width of a random crop, in pixels. The network reads its routing off the whole slice, so a crop trains
    it on less than it will see; it saves time and memory."""
    shift_pixels: int = 0
    """Largest shift in the plane, up or down and left or right, in pixels."""
    intensity_jitter: float = 0.0
    """Largest relative change of the low field's scale, and of the logarithm of its gamma; 0.1 is a mild one."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be cut and changes that leave nothing."""
        if self.crop is not None and min(self.crop) < 9:
            raise ValueError(f"data.augment.crop: expected at least 9 x 9, found {self.crop[0]} x {self.crop[1]}")
        if self.shift_pixels < 0:
            raise ValueError(f"data.augment.shift_pixels: expected at least 0, found {self.shift_pixels}")
        if not 0 <= self.intensity_jitter < 1:
            raise ValueError(
                f"data.augment.intensity_jitter: expected from 0 to below 1, found {self.intensity_jitter}"
            )


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from and how they are batched."""

    shards: str | Path
    """The shard set: a folder, or an address (`s3://`, `gs://`, `https://` or what else fsspec has a package for)."""
    batch_size: int = 4
    """Samples in one *global* batch, divided evenly over the processes."""
    micro_batch: int | None = None
    """Slices that pass the network at once on each process; the gradients of its share of the batch are accumulated
    over as many passes as that takes. By default the whole share passes at once. Each pass has a load loss of its own,
    which is not linear in the batch."""
    window_shards: int = 16
    """Shards whose samples are mixed: more mixes better, fewer keep remote fetching local."""
    num_workers: int = 0
    """Threads per rank that read ahead; reading by offset keeps up with training without any."""
    prefetch: int = 4
    """Batches that each of them reads ahead: more bridge a slow disk's pauses, each holds its slices' memory."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of training pairs."""
    trace: Path | None = None
    """File that gets a JSON line per step: epoch, step and the keys that were really consumed, in global order."""
    cache_dir: Path | None = None
    """Where remote shards are kept, shared by the node's processes and by later runs; on a disk of the node, for a
    network drive would only move the waiting. `~/.cache/upfield/shards` by default."""
    cache_bytes: int = 50_000_000_000
    """Most bytes that `cache_dir` may take, what was used least recently goes first. Two windows must fit; a whole set
    that fits is fetched only once, a smaller cache fetches every epoch anew. Twenty windows of usual shards (16 of 150
    MB) by default, which most nodes have to spare."""
    fetch_retries: int = 5
    """Further tries for a remote shard that does not arrive as the manifest says, after pauses that double from half a
    second. More ride out longer outages, fewer stop sooner for a shard that is lost."""
    fetch_timeout_s: float = 60.0
    """Seconds without a byte after which a transfer is given up and tried again. Shorter notices stalls sooner, longer
    bears with stores that are slow to begin."""

    def __post_init__(self) -> None:
        """Refuse numbers that would turn training into nothing."""
        limits = (("batch_size", 1), ("micro_batch", 1), ("window_shards", 1), ("num_workers", 0), ("prefetch", 1))
        for name, least in (*limits, ("cache_bytes", 1), ("fetch_retries", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"data.{name}: expected at least {least}, found {value}")
        if not self.fetch_timeout_s > 0:
            raise ValueError(f"data.fetch_timeout_s: expected a positive time, found {self.fetch_timeout_s}")


@dataclass(frozen=True)
class ModelConfig:
    """Which network is trained; input channels follow from the shard set's context."""

    preset: Literal["official", "report", "tiny"] = "official"
    """Sizes to start from."""
    dim: int | None = None
    """Channels at full resolution, if not the preset's."""
    num_blocks: tuple[int, int, int, int] | None = None
    """Blocks per level, if not the preset's."""
    num_refinement_blocks: int | None = None
    """Blocks after the decoder, if not the preset's."""
    heads: tuple[int, int, int, int] | None = None
    """Attention heads per level, if not the preset's."""
    num_tokens: int | None = None
    """Dictionary tokens, if not the preset's."""
    num_experts: int | None = None
    """Experts per routing module, if not the preset's."""
    init: Path | None = None
    """Weights to start from: a safetensors file, or a published `.pth`."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        self.amir(context=0)

    def amir(self, context: int) -> AmirConfig:
        """Give the network's sizes for a shard set of `context` neighbouring slices on each side."""
        names = ("dim", "num_blocks", "num_refinement_blocks", "heads", "num_tokens", "num_experts")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(AmirConfig.preset(self.preset), in_channels=1 + 2 * context, **given)


@dataclass(frozen=True)
class OptimConfig:
    """Adam and its learning rate."""

    lr: float = 2e-4
    """Highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's averages."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: kept, or lowered along a half cosine to `final_lr` at the last step."""
    warmup_steps: int = 0
    """Steps of linear rise from zero."""
    final_lr: float = 1e-6
    """Learning rate at the end of `cosine`."""
    clip_norm: float | None = None
    """Largest gradient norm; none by default."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, 0.999 for instance; that average is then what is validated
    and kept as the best model. None by default."""

    def __post_init__(self) -> None:
        """Refuse rates that cannot train."""
        if not self.lr > 0:
            raise ValueError(f"optim.lr: expected a positive rate, found {self.lr}")
        if self.final_lr < 0:
            raise ValueError(f"optim.final_lr: expected at least 0, found {self.final_lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas: expected two numbers from 0 to below 1, found {self.betas}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optim.clip_norm: expected a positive norm, or null for none, found {self.clip_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"optim.ema_decay: expected between 0 and 1, or null for none, found {self.ema_decay}")
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps: expected at least 0, found {self.warmup_steps}")


@dataclass(frozen=True)
class RunConfig:
    """How long, how often, where to."""

    out: Path
    """Folder of the run."""
    epochs: int = 60
    """Passes over the training split."""
    max_steps: int | None = None
    """Steps to stop after, if that is sooner."""
    precision: Literal["bf16", "fp16", "no"] = "bf16"
    """Mixed precision; `no` is float32. bf16 where hardware has it (GPUs since Ampere, CPUs with AVX512-BF16 or AMX):
    there it was the fastest, and it needs no loss scaling; elsewhere take fp16 on a GPU and `no` on a CPU."""
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """What is computed again for the gradient instead of being kept. `selective`, what follows the blocks' 1x1
    convolutions: half the memory; `full`, whole blocks: a ninth. `auto` takes the least that fits a GPU's memory, and
    none on a CPU."""
    compile: bool = False
    """Compile the network's blocks with torch.compile. Off, since two CPU cores took minutes to compile `official` and
    then trained slower."""
    seed: int = 0
    """Seed of weights, order and gating noise."""
    resume: str = "auto"
    """`auto` goes on from the last checkpoint in `out` if any, `none` starts anew, a path names a checkpoint."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; by default one at the end of each epoch."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    validate_every: int | None = None
    """Steps between validations; by default one at the end of each epoch."""
    log_every: int = 10
    """Steps between lines in the log."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Accelerate's trackers that get the log: tensorboard, wandb, mlflow, ...; packages other than the first's are not
    installed by default."""
    pictures: int = 4
    """Validation slices whose low field, restoration and high field go to the trackers as pictures; 0 for none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: stop the run, or leave that batch out."""
    max_skips: int = 10
    """Batches that `skip` may leave out in a run before it stops all the same."""
    stopped_code: int = 0
    """Exit code of a run that a signal has stopped before its end. Another than 0, 75 for instance, tells a scheduler
    that it is to be started again."""
    timeout_s: float = 600.0
    """Seconds that a process waits for the others in a collective operation before the job fails."""
    validation_batch_size: int = 4
    """Slices per process in validation."""

    def __post_init__(self) -> None:
        """Refuse numbers that would turn the run into nothing."""
        for name in ("seed", "pictures", "max_skips"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name}: expected at least 0, found {getattr(self, name)}")
        if not 0 <= self.stopped_code < 126 or self.stopped_code in (1, 2):
            raise ValueError(
                f"run.stopped_code: expected 0, or 3 to 125, which mean nothing else, found {self.stopped_code}"
            )
        if not self.timeout_s > 0:
            raise ValueError(f"run.timeout_s: expected a positive time, found {self.timeout_s}")
        positive = ("epochs", "max_steps", "checkpoint_every", "keep_checkpoints", "validate_every", "log_every")
        for name in (*positive, "validation_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"run.{name}: expected at least 1, found {value}")


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
    """Processes to launch on this machine; under `accelerate launch` or torchrun those decide."""

    def __post_init__(self) -> None:
        """Refuse an impossible number of processes."""
        if self.processes < 1:
            raise ValueError(f"processes: expected at least 1, found {self.processes}")
