"""The schema of evaluation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure runs or ONNX files on a split, beside cubic interpolation, and write metrics and a report of each."""

    models: list[Path]
    """Folders of runs, or `.onnx` files; several are each measured into a folder of `out`, and compared in a table."""
    against: Path | None = None
    """Another run or `.onnx` file, measured beside each of them."""
    shards: Path = field(kw_only=True)
    """Folder of the shard set."""
    split: Literal["train", "val", "test"] = "test"
    """Split to measure on."""
    out: Path = field(kw_only=True)
    """Folder of the report."""
    batch_size: int = 4
    """Slices restored at once."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes a GPU where there is one; `cuda` fails where there is none."""
    perturb: bool = True
    """Look for what the model makes of slightly changed input too, which takes four times as long."""
    save_volumes: bool = False
    """Write each restored volume as NIfTI to `out/volumes`, on the set's grid."""
    processes: int = 1
    """Start this many processes here, each with its share of the volumes. With `accelerate launch` or torchrun leave it
    at 1."""

    def __post_init__(self) -> None:
        """Refuse an empty list of models, an empty batch, and no process."""
        if not self.models:
            raise ValueError("models: the list is empty. Name at least one run or model file.")
        for name in ("batch_size", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
