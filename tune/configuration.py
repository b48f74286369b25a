"""The configuration of a sweep; free of heavy imports, so that `--help` starts quickly."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from upfield.distributed.configuration import TrainConfig


@dataclass(frozen=True)
class ResourceConfig:
    """Resources of one trial."""

    workers_per_trial: int = 1
    """Processes that train a trial together: one runs in Ray Tune's own process, several form a Ray Train group."""
    cpus_per_worker: float = 1
    """CPU cores of each process."""
    gpus_per_worker: float | None = None
    """GPUs of each process; by default one if the cluster has any at the start. With a fraction, several trials share a
    GPU. With 0, trials see no GPU and train on CPUs."""

    def __post_init__(self) -> None:
        """Check that the numbers are possible."""
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

    grace_epochs: float = 1
    """Epochs that every trial trains, even a bad one."""
    reduction_factor: float = 3
    """At each rung, the best 1 in this many trials continue. The next rung is at this many times the epochs."""

    def __post_init__(self) -> None:
        """Check that rungs stop some of the trials."""
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
    train: TrainConfig
    """The training configuration that points change; the sweep itself sets `run.out` and `run.resume`."""
    space: dict[str, Any] = field(default_factory=dict)
    """Dotted training key -> its values: a list, `{uniform: [a, b]}`, `{loguniform: [a, b]}`, or `{int: [a, b]}` with
    both ends included."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid` trains all combinations of lists, `random` draws points, `optuna` proposes points with its TPE sampler."""
    trials: int = 20
    """Number of points for `random` and `optuna`."""
    seed: int = 0
    """Seed of the search."""
    seeds: int = 1
    """Number of trainings per point, with consecutive values of `run.seed`; points are compared by their mean."""
    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops bad trials early."""
    asha: AshaConfig = field(default_factory=AshaConfig)
    """Settings of `asha`."""
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    """Resources of one trial."""
    max_concurrent_trials: int = 0
    """Most trials at the same time; 0 for as many as fit."""
    max_failures: int = 2
    """How often a trial that crashed or was killed continues from its last checkpoint."""
    address: str | None = None
    """Ray cluster: `auto` for the one that this node belongs to, or an address. By default RAY_ADDRESS is used, then a
    cluster that runs here. If there is neither, Ray starts on this machine."""
    wait_for_nodes_s: float = 0
    """How long to wait until an autoscaling cluster has started nodes that a trial fits."""
    package: Path | None = None
    """A wheel of upfield to send to every node; without it, upfield must be installed on all of them."""
    storage: str | None = None
    """Store for the checkpoints of trials if `out` is not on shared storage: `s3://bucket/folder`, `gs://...`. Trials
    then train on the disk of their node and upload at each validation. Only the best run is downloaded to `out`."""

    def __post_init__(self) -> None:
        """Check that the numbers are possible."""
        limits = (("trials", 1), ("seeds", 1), ("seed", 0), ("max_concurrent_trials", 0), ("max_failures", 0))
        limits += (("wait_for_nodes_s", 0),)
        for name, least in limits:
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}: expected at least {least}, found {value}.")
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
