"""The schema of evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a run or an ONNX file on a split, beside cubic interpolation, and write metrics and a report."""

    model: Path | None = None
    """Folder of a run, or an `.onnx` file."""
    shards: Path | None = None
    """Folder of the shard set."""
    split: Literal["train", "val", "test"] = "test"
    """Split to measure on."""
    out: Path | None = None
    """Folder of the report."""
    batch_size: int = 4
    """Slices restored at once."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes a GPU where there is one; `cuda` fails where there is none."""

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {self.batch_size}")
