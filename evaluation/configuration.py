"""The configuration of `upfield evaluate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from upfield.export.configuration import Engine
from upfield.sharding.shardset.configuration import AccessConfig


@dataclass(frozen=True)
class EvaluateConfig(AccessConfig):
    """Measure models and cubic interpolation on a split, and write metrics and a report for each model."""

    models: list[Path]
    """Run folders, `.onnx` files, or names of models that come with the package. Each of several models gets its own
    folder in `out`, and a table compares them."""
    against: Path | None = None
    """Another run folder, `.onnx` file or name of a model, with which each model is compared."""
    shards: str | Path = field(kw_only=True)
    """Shard set: a folder or an address. Of a remote set, all processes of a node share the downloaded shards."""
    split: Literal["train", "val", "test"] = "test"
    """Split to measure on."""
    out: Path = field(kw_only=True)
    """Folder for the report."""
    batch_size: int = 4
    """Number of slices that the model restores at once."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` uses a GPU if there is one. `cuda` fails if there is none."""
    engine: Engine = "onnx"
    """Engine that runs `.onnx` files, as in `upfield enhance`. Runs are always measured in PyTorch."""
    perturb: bool = True
    """Also measure how much the output changes if the input is perturbed. This takes four times as long."""
    save_volumes: bool = False
    """Write each restored volume as NIfTI to `out/volumes`, on the grid of the shard set."""
    processes: int = 1
    """Number of processes to start on this machine. The volumes are divided among them. Leave it at 1 if you start the
    command with `accelerate launch` or torchrun."""

    def __post_init__(self) -> None:
        """Check that there is a model, at least one slice per batch, and at least one process."""
        if not self.models:
            raise ValueError("models: the list is empty. Name at least one run or model file.")
        for name in ("batch_size", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        super().__post_init__()
