"""The schema of a sweep."""

import math
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
    """CPU cores of each process."""
    gpus_per_worker: float | None = None
    """GPUs of each process; by default one where the cluster has any now. A part of one lets several trials share it;
    with 0 trials see none and train on CPUs."""

    def __post_init__(self) -> None:
        """Refuse numbers that would never run."""
        if self.workers_per_trial < 1:
            raise ValueError(f"resources.workers_per_trial: expected at least 1, found {self.workers_per_trial}")
        if not 0 < self.cpus_per_worker < math.inf:
            raise ValueError(f"resources.cpus_per_worker: expected a positive number, found {self.cpus_per_worker}")
        gpus = self.gpus_per_worker or 0
        if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"resources.gpus_per_worker: expected 0, a part of 1, or whole GPUs, found {gpus}")
        if self.workers_per_trial > 1 and gpus != int(gpus):
            raise ValueError(
                "resources.gpus_per_worker: expected whole GPUs where several workers train a trial, since NCCL wants "
                f"one for each, found {gpus}"
            )


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

    out: Path
    """Folder of the sweep, on storage that all nodes share unless `storage` is given. The same command again goes on
    where an earlier one was interrupted."""
    train: TrainConfig
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
    """Ray cluster: `auto` for the one that this node is part of, or an address; by default that of RAY_ADDRESS, one
    that runs here, or else a new one of this machine."""
    wait_for_nodes_s: float = 0
    """How long to wait for nodes that a trial fits, where an autoscaling cluster has yet to start them."""
    package: Path | None = None
    """A wheel of upfield that every node gets; without it upfield must be installed on all of them."""
    storage: str | None = None
    """Where trials' checkpoints go, if `out` is on no storage that all nodes share: `s3://bucket/folder`, `gs://...`.
    Trials then train in folders of their node and upload at each validation; only the best run comes to `out`."""

    def __post_init__(self) -> None:
        """Refuse numbers that would never run."""
        limits = (("trials", 1), ("seeds", 1), ("seed", 0), ("max_concurrent_trials", 0), ("max_failures", 0))
        limits += (("wait_for_nodes_s", 0),)
        for name, least in limits:
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}: expected at least {least}, found {value}")
        if self.scheduler == "asha" and self.seeds > 1:
            raise ValueError(
                "scheduler: expected none with several seeds, since runs of different lengths have no mean that says "
                f"anything, found asha with seeds {self.seeds}; search with asha, and train its best points with seeds"
            )
        if self.storage is not None and self.resources.workers_per_trial > 1:
            raise ValueError(
                "storage: expected trials of one worker, since those of several need a folder that all of them see, "
                f"found resources.workers_per_trial {self.resources.workers_per_trial}; put out on shared storage"
            )
