"""The configuration of a sweep, without heavy imports, so that `--help` starts quickly."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from upfield.distributed.configuration import TrainSettings


@dataclass(frozen=True)
class ResourceConfig:
    """Resources of one trial."""

    workers_per_trial: int = 1
    """Processes that train a trial together. A single one runs in Ray Tune's own process; several form a Ray Train
    group."""
    cpus_per_worker: float = 1.0
    """CPU cores of each process."""
    gpus_per_worker: float | None = None
    """GPUs of each process. Default: 1 if the cluster has a GPU when the sweep starts, otherwise 0. With a fraction,
    several trials share a GPU. With 0, trials see no GPU and train on CPUs."""

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range, and fractions of GPUs for trials of several workers."""
        if self.workers_per_trial < 1:
            raise ValueError(f"resources.workers_per_trial: expected at least 1, found {self.workers_per_trial}.")
        if not 0 < self.cpus_per_worker < math.inf:
            raise ValueError(f"resources.cpus_per_worker: expected a positive number, found {self.cpus_per_worker}.")
        gpus = self.gpus_per_worker or 0
        if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"resources.gpus_per_worker: expected a fraction below 1 or a whole number, found {gpus}.")
        if self.workers_per_trial > 1 and gpus != int(gpus):
            raise ValueError(
                f"resources.gpus_per_worker: expected a whole number for trials of several workers, found {gpus}. NCCL "
                "needs a GPU for each worker."
            )


@dataclass(frozen=True)
class AshaConfig:
    """Early stopping by asynchronous successive halving (Li et al., 2020)."""

    grace_epochs: float = 1.0
    """Number of epochs that every trial trains before it can be stopped."""
    reduction_factor: float = 3.0
    """At each rung, the best 1 in this many trials continues. Each rung has this many times the epochs of the last."""

    def __post_init__(self) -> None:
        """Refuse values with which no rung would stop any trial."""
        if not self.grace_epochs > 0:
            raise ValueError(f"asha.grace_epochs: expected a positive number, found {self.grace_epochs}.")
        if not self.reduction_factor > 1:
            raise ValueError(f"asha.reduction_factor: expected more than 1, found {self.reduction_factor}.")


@dataclass(frozen=True)
class SweepConfig:
    """Search training configurations with Ray Tune for the best validation PSNR."""

    out: Path
    """Folder of the sweep, on storage that all nodes share unless `storage` is given. The same command continues an
    interrupted sweep."""
    train: TrainSettings
    """The training configuration in which each point replaces values. Each trial gets an output folder of its own and
    resumes from it."""
    space: dict[str, Any] = field(default_factory=dict)
    """The keys to search: dotted training key -> a list of values, `{uniform: [a, b]}`, `{loguniform: [a, b]}`, or
    `{int: [a, b]}`, which includes both ends. A point has one value for each key."""
    validation_slices: int | None = 100
    """Number of slices of each validation of a trial, unless `train.run.validation_slices` is set. They are spread over
    the validation split, and all trials are compared on the same ones. With null, each validation measures the whole
    split, which can take longer than a short trial trains. Use `upfield evaluate` to measure the best run on whole
    scans."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid` trains all combinations of lists, `random` draws points, `optuna` proposes points with its TPE sampler."""
    trials: int = 20
    """Number of points for `random` and `optuna`."""
    seed: int = 0
    """Seed of the search."""
    seeds: int = 1
    """Number of trials per point, with consecutive values of `run.seed`. Points are compared by their mean score."""
    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops bad trials early."""
    asha: AshaConfig = field(default_factory=AshaConfig)
    """Settings of `asha`."""
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    """Resources of one trial."""
    max_concurrent_trials: int = 0
    """Maximum number of trials at the same time; 0 for as many as fit."""
    max_failures: int = 2
    """How many times a trial that crashed or was killed continues from its last checkpoint."""
    address: str | None = None
    """Ray cluster: `auto` for the cluster of this node, or an address. By default, RAY_ADDRESS is used, then a cluster
    that runs on this machine. If there is neither, Ray starts on this machine."""
    wait_for_nodes_s: float = 0.0
    """How long to wait until an autoscaling cluster has started enough nodes for a trial."""
    package: Path | None = None
    """A wheel of upfield to send to every node; without it, upfield must be installed on all of them."""
    storage: str | None = None
    """Store for the checkpoints of trials if `out` is not on shared storage: `s3://bucket/folder`, `gs://...`. Trials
    then train on the disk of their node and upload at each validation. Only the best run is downloaded to `out`."""

    def __post_init__(self) -> None:
        """Refuse numbers that are too small, and options that cannot be combined."""
        limits = (("trials", 1), ("seeds", 1), ("seed", 0), ("max_concurrent_trials", 0), ("max_failures", 0))
        limits += (("wait_for_nodes_s", 0), ("validation_slices", 1))
        for name, minimum in limits:
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ValueError(f"{name}: expected at least {minimum}, found {value}.")
        if self.scheduler == "asha" and self.seeds > 1:
            raise ValueError(
                f"--scheduler asha and --seeds {self.seeds} cannot be combined, because runs of different lengths have "
                "no meaningful mean. Search with asha first, and train its best points with several seeds."
            )
        if self.storage is not None and self.resources.workers_per_trial > 1:
            raise ValueError(
                f"--storage and --resources.workers_per_trial {self.resources.workers_per_trial} cannot be combined, "
                "because several workers need a folder that all of them see. Put --out on shared storage instead."
            )
