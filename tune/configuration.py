"""The schema of a sweep."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upfield.distributed.configuration import TrainConfig


@dataclass(frozen=True)
class SweepConfig:
    """Search training configurations with Ray Tune; the metric is validation PSNR."""

    out: Path | None = None
    """Folder of the sweep."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training configuration that every trial starts from; `run.out` is set per trial."""
    space: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted training key -> the values to try, e.g. `optim.lr: [1e-4, 2e-4, 5e-4]`; all combinations are tried."""
    max_concurrent_trials: int = 1
    """Trials at the same time."""
    cpus_per_trial: int = 1
    """CPU cores that one trial takes."""
    gpus_per_trial: float = 0
    """GPUs that one trial takes."""

    def __post_init__(self) -> None:
        """Refuse numbers that would never run."""
        if self.max_concurrent_trials < 1 or self.cpus_per_trial < 1 or self.gpus_per_trial < 0:
            raise ValueError(
                "expected max_concurrent_trials and cpus_per_trial of at least 1, gpus_per_trial of at least 0, found "
                f"{self.max_concurrent_trials}, {self.cpus_per_trial}, {self.gpus_per_trial}"
            )
