"""Configuration of `upfield export`, `upfield enhance` and `upfield serve`."""

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cuda", "tensorrt", "cpu"]


@dataclass(frozen=True)
class ExportConfig:
    """Write a run's best model as one ONNX file, compare the file with PyTorch, and record the result in it."""

    run: Path
    """Folder of the run."""
    out: Path
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

    model: Path
    """The `.onnx` file."""
    scans: list[Path]
    """NIfTI or MGH files, or folders that contain them."""
    out: Path
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
        """Refuse an empty list of scans, an empty batch, and options that cannot be combined."""
        if not self.scans:
            raise ValueError("scans: the list is empty. Name at least one scan or folder.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {self.batch_size}")
        if self.keep_ras and self.like is not None:
            raise ValueError("keep_ras and like cannot be combined. An image's grid has its own axis order.")


@dataclass(frozen=True)
class ServeConfig:
    """Enhance scans over HTTP, on Ray Serve."""

    model: Path
    """The `.onnx` file."""
    host: str = "127.0.0.1"
    """Address to listen on. By default, only this machine can reach the service; with another address, set a token."""
    port: int = 8000
    """Port to listen on."""
    device: Device = "auto"
    """`auto` uses a GPU if there is one; `cuda` and `tensorrt` fail if they cannot run."""
    address: str | None = None
    """Ray cluster to restore on: HOST:PORT, or `auto` for the cluster of this node. By default, the service uses this
    machine alone."""
    replicas: int = 1
    """Fewest processes that restore slices."""
    max_replicas: int | None = None
    """Most processes that restore slices. They start while slices wait, and stop when none do. At most `scans_at_once`,
    because each scan has strips for one replica. Default: `replicas`."""
    cores_per_replica: int = 0
    """CPU cores of each replica. 0 divides this machine's cores among the replicas, or takes one core on a cluster."""
    gpus_per_replica: float = 1.0
    """GPUs of each replica, or the share of one. Replicas take none if there is no GPU, or with `device: cpu`."""
    batch_size: int = 4
    """Slices restored at once, of one scan or several. `enhance` gives the same values with the same batch size."""
    scans_at_once: int = 4
    """Scans that are read, restored and written at the same time. Each holds its voxels in memory."""
    max_queue: int = 16
    """Scans that may wait besides. Further scans are refused with 503, and with the time after which to try again."""
    timeout_s: float = 900.0
    """Longest time from a request's first byte to its answer; then the request is refused with 504."""
    idle_timeout_s: float = 30.0
    """Longest pause of a client. A client that pauses while it sends its scan gets 408; if it pauses while it receives
    its answer, the connection ends."""
    max_body_bytes: int = 256 * 2**20
    """Largest upload."""
    max_decompressed_bytes: int = 2**30
    """Largest content of a compressed upload."""
    max_voxels: int = 2**27
    """Most voxels of a scan, as it is stored and after interpolation to 1 mm."""
    token_file: Path | None = None
    """File with the token that requests must carry. The variable UPFIELD_TOKEN can hold the token instead."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Names that requests may use for the service besides this machine's own, for instance the name that a proxy
    forwards, as `[NAME]`. If the list is empty, a service that other machines can reach accepts every name."""

    def __post_init__(self) -> None:
        """Refuse values that no service can run with."""
        for name, least in SERVE_LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}.")
        if self.port > 65535:
            raise ValueError(f"port: expected at most 65535, found {self.port}.")
        for name in ("timeout_s", "idle_timeout_s"):
            if not isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number of seconds, found {getattr(self, name)}.")
        if named := [name for name in self.allowed_hosts if "*" in name]:
            raise ValueError(f"allowed_hosts: {named[0]} contains a wildcard. Write out each name.")
        self._check_replicas()

    def _check_replicas(self) -> None:
        most, gpus = self.max_replicas, self.gpus_per_replica
        if most is not None and most < self.replicas:
            raise ValueError(f"max_replicas: expected at least replicas ({self.replicas}), found {most}.")
        if most is not None and most > max(self.replicas, self.scans_at_once):
            raise ValueError(
                f"max_replicas: expected at most scans_at_once ({self.scans_at_once}), found {most}. Raise "
                "scans_at_once, because more replicas would never be started."
            )
        if not gpus > 0:
            raise ValueError(f"gpus_per_replica: expected more than 0, found {gpus}. Set device: cpu to use no GPU.")
        if gpus > 1 and not gpus.is_integer():
            raise ValueError(f"gpus_per_replica: expected a whole number, or a share below 1, found {gpus}.")


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
