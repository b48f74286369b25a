"""The schema of the commands that turn a run into a model file and scans into enhanced scans."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cuda", "tensorrt", "cpu"]


@dataclass(frozen=True)
class ExportConfig:
    """Turn a run's best model into one ONNX file, with parity proved and recorded."""

    run: Path | None = None
    """Folder of the run."""
    out: Path | None = None
    """The `.onnx` file to write; a model file that is there is replaced, any other file is not."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Of weights and images in the file. `fp16` is half as large and made for GPUs; it is refused where it would lose
    more than 0.05 dB."""
    shards: Path | None = None
    """Shard set whose validation slices parity is proved on; default: the one that the run was trained on."""
    evaluation: Path | None = None
    """A `metrics.json` that `upfield evaluate` wrote about this run, to be recorded in the file."""


@dataclass(frozen=True)
class EnhanceConfig:
    """Enhance scans: NIfTI in, NIfTI out, files or folders, batched."""

    model: Path | None = None
    """The `.onnx` file."""
    scans: list[Path] = field(default_factory=list)
    """NIfTI or MGH files, or folders that are searched for them."""
    out: Path | None = None
    """A `.nii` or `.nii.gz` file for a single scan, otherwise a folder."""
    batch_size: int = 4
    """Slices restored at once."""
    device: Device = "auto"
    """`auto` takes a GPU where there is one; `cuda` and `tensorrt` fail where they cannot run."""
    keep_ras: bool = False
    """Write axes that run right, anterior, superior, instead of as the scan's own do."""
    like: Path | None = None
    """Write on the grid of this image, by cubic interpolation in the world that it shares with the scans."""
    resume: bool = False
    """Leave out scans whose output is there, made by the same model with the same parameters."""

    def __post_init__(self) -> None:
        """Refuse an empty batch, and two answers to where axes run."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {self.batch_size}")
        if self.keep_ras and self.like is not None:
            raise ValueError("keep_ras: expected it without like, found both; an image's grid has axes of its own")


@dataclass(frozen=True)
class ServeConfig:
    """Enhance scans over HTTP, on Ray Serve."""

    model: Path | None = None
    """The `.onnx` file."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    device: Device = "auto"
    """`auto` takes a GPU where there is one; `cuda` and `tensorrt` fail where they cannot run."""
