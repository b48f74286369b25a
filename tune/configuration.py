"""The schema of a sweep."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from upfield.distributed.configuration import TrainConfig


@dataclass(frozen=True)
class ResourceConfig:
    """What one trial takes."""

    workers_per_trial: int = 1
    """Processes that train a trial together. One trains in Ray Tune's own process, several in a Ray Train group."""
    cpus_per_worker: float = 1
    """CPU cores of each process. The driver of several workers takes one more, which hardly computes."""
    gpus_per_worker: float = 0
    """GPUs of each process; a part of one lets several trials share it."""

    def __post_init__(self) -> None:
        """Refuse numbers that would never run."""
        for name, least in (("workers_per_trial", 1), ("gpus_per_worker", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"resources.{name}: expected at least {least}, found {value}")
        if not self.cpus_per_worker > 0:
            raise ValueError(f"resources.cpus_per_worker: expected a positive number, found {self.cpus_per_worker}")


@dataclass(frozen=True)
class AshaConfig:
    """Early stopping by asynchronous successive halving (Li et al., 2020)."""

    grace_epochs: float = 1
    """Epochs that every trial may train, however bad."""
    reduction_factor: float = 3
    """At each rung the best 1 in this many go on; a rung lies this many times higher than the one before."""

    def __post_init__(self) -> None:
        """Refuse rungs that halve nothing."""
        if not self.grace_epochs > 0:
            raise ValueError(f"asha.grace_epochs: expected a positive number, found {self.grace_epochs}")
        if not self.reduction_factor > 1:
            raise ValueError(f"asha.reduction_factor: expected more than 1, found {self.reduction_factor}")


@dataclass(frozen=True)
class SweepConfig:
    """Search training configurations with Ray Tune; the metric is the best validation PSNR."""

    out: Path | None = None
    """Folder of the sweep, on storage that all nodes share unless `storage` is given. The same command again goes on
    where an earlier one was interrupted."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training configuration that every trial starts from; `run.out` and `run.resume` are set per trial."""
    space: dict[str, Any] = field(default_factory=dict)
    """Dotted training key -> what to try: a list of values, `{uniform: [a, b]}`, `{loguniform: [a, b]}`, or
    `{int: [a, b]}` with both ends included."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid` tries all combinations of lists, `random` draws points, `optuna` lets its TPE sampler propose them."""
    trials: int = 20
    """Points that `random` and `optuna` try."""
    seed: int = 0
    """Of the search."""
    seeds: int = 1
    """Times that each point is trained, with `run.seed` counting up; points are then compared by their mean."""
    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops bad trials early."""
    asha: AshaConfig = field(default_factory=AshaConfig)
    """How `asha` does."""
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    """What one trial takes."""
    max_concurrent_trials: int = 0
    """Trials at the same time; 0 for as many as fit."""
    max_failures: int = 2
    """Times that a trial which crashed, or whose process was killed, goes on from its last checkpoint."""
    address: str | None = None
    """Ray cluster: `auto` for the one that this node is part of, or an address; by default Ray is started here."""
    package: Path | None = None
    """A wheel of upfield that every node gets; without it upfield must be installed on all of them."""
    storage: str | None = None
    """Where trials' checkpoints go, if `out` is on no storage that all nodes share: `s3://bucket/folder`, `gs://...`.
    Trials then train in folders of their node and upload at each validation; only the best run comes to `out`."""

    def __post_init__(self) -> None:
        """Refuse numbers that would never run."""
        limits = (("trials", 1), ("seeds", 1), ("seed", 0), ("max_concurrent_trials", 0), ("max_failures", 0))
        for name, least in limits:
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}: expected at least {least}, found {value}")
        if self.storage is not None and self.resources.workers_per_trial > 1:
            raise ValueError(
                "storage: expected trials of one worker, since those of several need a folder that all of them see, "
                f"found resources.workers_per_trial {self.resources.workers_per_trial}; put out on shared storage"
            )
