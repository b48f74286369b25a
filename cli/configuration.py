"""Configuration of `upfield demo`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """Run every stage once on phantoms, from the cohort to an enhanced scan, and write a report."""

    out: Path = Path("demo")
    """Folder for all files. An earlier demonstration in it is deleted."""
    subjects: int = 6
    """Number of phantom subjects."""
    max_steps: int | None = None
    """Number of training steps. Default: that of the recipe `tiny_cpu.yaml`."""
    seed: int = 0
    """Seed of the cohort and the training."""
