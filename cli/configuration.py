"""Configuration of `upfield demo`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """Run every stage once on phantoms, from the cohort to an enhanced scan, and write a report."""

    out: Path = Path("demo")
    """Folder for all files. An earlier demonstration in it is deleted."""
    subjects: int = 6
    """Number of phantom subjects, 4 to 99."""
    max_steps: int | None = None
    """Number of training steps. Default: that of the recipe `tiny_cpu.yaml`."""
    seed: int = 0
    """Seed of the cohort and the training."""

    def __post_init__(self) -> None:
        """Check the numbers, which would otherwise fail only after some stages."""
        if not 4 <= self.subjects <= 99:
            raise ValueError(f"subjects: expected 4 to 99, found {self.subjects}.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, found {self.max_steps}.")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, found {self.seed}.")
