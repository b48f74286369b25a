"""The schema of the demonstration."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """Everything once, on phantoms: cohort, shards, training, evaluation, ONNX, an enhanced scan, a report."""

    out: Path = Path("demo")
    """Folder for everything; an earlier demonstration in it is replaced."""
    subjects: int = 6
    """Phantom subjects."""
    max_steps: int | None = None
    """Training steps, if not those of the recipe."""
    seed: int = 0
    """Seed of the cohort and of training."""
