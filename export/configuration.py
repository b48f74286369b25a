"""Configuration of `upfield export`, `upfield enhance` and `upfield serve`."""

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cuda", "tensorrt", "cpu"]


@dataclass(frozen=True)
class ExportConfig:
    """Write a run's best model as one ONNX file, compare the file with PyTorch, and record the result in it."""

    run: Path | None = None
    """Folder of the run."""
    out: Path | None = None
    """The `.onnx` file to write. An older model file is replaced, any other file is not."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Precision of weights and images in the file. `fp16` is half as large and meant for GPUs; it is refused if it
    loses more than 0.05 dB."""
    shards: Path | None = None
    """Shard set whose validation slices the file is compared on; by default the one that the run was trained on."""
    evaluation: Path | None = None
    """A `metrics.json` that `upfield evaluate` wrote about this run; its figures are recorded in the file."""


@dataclass(frozen=True)
class EnhanceConfig:
    """Enhance scans, single files or whole folders, and write them as NIfTI."""

    model: Path | None = None
    """The `.onnx` file."""
    scans: list[Path] = field(default_factory=list)
    """NIfTI or MGH files, or folders that contain them."""
    out: Path | None = None
    """A `.nii` or `.nii.gz` file for a single scan, otherwise a folder."""
    batch_size: int = 4
    """Slices restored at once."""
    device: Device = "auto"
    """`auto` uses a GPU if there is one; `cuda` and `tensorrt` fail if they cannot run."""
    keep_ras: bool = False
    """Write axes that run right, anterior, superior, instead of in the scan's own order."""
    like: Path | None = None
    """Write on the grid of this image, by cubic interpolation in world coordinates; nothing is registered."""
    resume: bool = False
    """Skip scans whose output exists and was made by the same model with the same parameters."""

    def __post_init__(self) -> None:
        """Refuse an empty batch and options that cannot be combined."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {self.batch_size}")
        if self.keep_ras and self.like is not None:
            raise ValueError("keep_ras and like cannot be combined. An image's grid has its own axis order.")


@dataclass(frozen=True)
class ServeConfig:
    """Enhance scans over HTTP, on Ray Serve."""

    model: Path | None = None
    """The `.onnx` file."""
    host: str = "127.0.0.1"
    """Address to listen on; with another than the default, other machines can reach the service: set a token."""
    port: int = 8000
    """Port to listen on."""
    device: Device = "auto"
    """`auto` takes a GPU where there is one; `cuda` and `tensorrt` fail where they cannot run."""
    address: str | None = None
    """Ray cluster to restore on, HOST:PORT, or `auto` for the one of this node; without it, this machine alone."""
    replicas: int = 1
    """Processes that restore slices, at least."""
    max_replicas: int | None = None
    """At most, started while slices wait and stopped when none do; default: as many as `replicas`. More than
    `scans_at_once` would never be started: so many have strips for one replica each."""
    cores_per_replica: int = 0
    """CPU cores of each; 0 shares this machine's cores out, or takes one on a cluster."""
    gpus_per_replica: float = 1.0
    """GPUs of each, or the share of one; without a GPU, or with `device: cpu`, they take none."""
    batch_size: int = 4
    """Slices restored at once, of one scan or several; `enhance` gives the same values with the same batch size."""
    scans_at_once: int = 4
    """Scans that are read, restored and written at the same time; each holds its voxels in memory."""
    max_queue: int = 16
    """Scans that may wait besides; further ones are answered with 503 and told when to come again."""
    timeout_s: float = 900.0
    """From a request's first byte to its answer; then it is given up with 504."""
    idle_timeout_s: float = 30.0
    """Longest pause of a client that sends its scan (408) or takes its answer (the connection ends)."""
    max_body_bytes: int = 256 * 2**20
    """Largest upload."""
    max_decompressed_bytes: int = 2**30
    """Largest content of a compressed upload."""
    max_voxels: int = 2**27
    """Most voxels of a scan, and of what it becomes at 1 mm."""
    token_file: Path | None = None
    """File that holds the token which requests must carry; the variable UPFIELD_TOKEN does it too."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Names that requests may ask for the service by, besides this machine's own: those that a proxy in front passes
    on, as `[NAME]`. Without any, a service that other machines reach takes all."""

    def __post_init__(self) -> None:
        """Refuse numbers that would serve nobody."""
        for name, least in SERVE_LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.port > 65535:
            raise ValueError(f"port: expected at most 65535, found {self.port}")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas: expected at least replicas ({self.replicas}), found {self.max_replicas}")
        if self.max_replicas is not None and self.max_replicas > max(self.replicas, self.scans_at_once):
            raise ValueError(
                f"max_replicas: expected at most scans_at_once ({self.scans_at_once}), found {self.max_replicas}; more "
                "would never be started: raise scans_at_once"
            )
        for name in ("timeout_s", "idle_timeout_s"):
            if not isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a number of seconds, found {getattr(self, name)}")
        gpus = self.gpus_per_replica
        if not gpus > 0:
            raise ValueError(f"gpus_per_replica: expected more than 0, found {gpus}; or device: cpu")
        if gpus > 1 and not gpus.is_integer():
            raise ValueError(f"gpus_per_replica: expected whole ones, or a share of one, found {gpus}")


SERVE_LEAST = {
    "port": 0,
    "replicas": 1,
    "cores_per_replica": 0,
    "batch_size": 1,
    "scans_at_once": 1,
    "max_queue": 0,
    "timeout_s": 0.1,
    "idle_timeout_s": 0.1,
    "max_body_bytes": 1,
    "max_decompressed_bytes": 1,
    "max_voxels": 1,
}
