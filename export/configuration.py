"""Configuration of `upfield export`, `upfield enhance`, `upfield serve` and `upfield models`."""

import re
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

from upfield.common.places import SCAN_SUFFIXES
from upfield.imaging.contrast import parse_contrast
from upfield.sharding.shardset.configuration import AccessConfig

Device = Literal["auto", "cuda", "tensorrt", "cpu"]
Engine = Literal["onnx", "torch"]
# The model that is used if the user names none.
STARTER = Path("starter-t1")


@dataclass(frozen=True)
class ExportConfig(AccessConfig):
    """Write a run's best model as one ONNX file, compare the file with PyTorch, and record the result in it."""

    run: Path
    """Folder of the run."""
    out: Path
    """The `.onnx` file to write. An existing model file is replaced; any other existing file is an error."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Precision of weights and images in the file. `fp16` is half as large and meant for GPUs; it is refused if it
    loses more than 0.05 dB."""
    shards: str | Path | None = None
    """Shard set with the validation slices for the comparison: a folder or an address. Default: the shard set that the
    run was trained on."""
    evaluation: Path | None = None
    """A `metrics.json` that `upfield evaluate` wrote about this run; its figures are recorded in the file."""


@dataclass(frozen=True)
class ModelsConfig:
    """List the models that come with the package, or print the card of one of them."""

    name: str | None = None
    """Name of the model whose card is printed. By default, all models are listed."""


@dataclass(frozen=True)
class EnhanceConfig:
    """Enhance scans, single files or whole folders, and write them as NIfTI."""

    scans: list[Path]
    """NIfTI or MGH files, or folders that contain them."""
    out: Path
    """A `.nii` or `.nii.gz` file for a single scan, otherwise a folder."""
    model: Path = STARTER
    """An `.onnx` file, or the name of a model that comes with the package; `upfield models` lists them. An `.onnx` file
    may also be given before the scans, without the flag."""
    batch_size: int = 4
    """Slices restored at once."""
    device: Device = "auto"
    """`auto` uses a GPU if there is one; `cuda` and `tensorrt` fail if they cannot run."""
    engine: Engine = "onnx"
    """`onnx` runs the model in ONNX Runtime. `torch` runs it in PyTorch, which compiles it first on a GPU. This takes
    time and is meant for many scans of one size."""
    keep_ras: bool = False
    """Write the axes in the order right, anterior, superior instead of the scan's own order."""
    like: Path | None = None
    """Write the result on the grid of this image, by cubic interpolation in world coordinates. The images are not
    registered."""
    resume: bool = False
    """Skip scans whose output exists and was made by the same model with the same parameters."""
    contrast: str | None = None
    """Contrast of all scans, as a BIDS suffix such as T1w. By default, it is taken from their names and JSON files."""
    match: str | None = field(default=None, metadata={"kind": "pattern"})
    """Pattern that the names of scans in folders must match, such as `*_T1w*`; if it contains a `/`, their paths."""

    def __post_init__(self) -> None:
        """Refuse an empty list of scans, models among them, an empty batch, and options that cannot be combined."""
        if not self.scans:
            raise ValueError("scans: the list is empty. Name at least one scan or folder.")
        if models := [scan for scan in self.scans if scan.suffix.lower() == ".onnx"]:
            if self.model.name.lower().endswith(SCAN_SUFFIXES):
                raise ValueError(f"{models[0]} is a model and {self.model} is a scan. Swap them.")
            other = "" if self.model == STARTER else f", and so is {self.model}"
            raise ValueError(f"scans: {models[0]} is a model{other}. Name one model, before the scans or with --model.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {self.batch_size}.")
        if self.keep_ras and self.like is not None:
            raise ValueError("keep_ras and like cannot be combined. An image's grid has its own axis order.")
        if self.contrast is not None:
            try:
                # The dataclass is frozen; `T1` becomes `T1w`.
                object.__setattr__(self, "contrast", parse_contrast(self.contrast))
            except ValueError as error:
                raise ValueError(f"contrast: {error}.") from error


@dataclass(frozen=True)
class ServeConfig:
    """Enhance scans over HTTP, on Ray Serve."""

    model: Path = STARTER
    """An `.onnx` file, or the name of a model that comes with the package; `upfield models` lists them."""
    host: str = "127.0.0.1"
    """Address to listen on. By default, only this machine can reach the service. Set a token before you change it."""
    port: int = 8000
    """Port to listen on."""
    root_path: str = ""
    """Path under which a proxy publishes the service, such as `/mri`, if the proxy does not strip it from requests."""
    device: Device = "auto"
    """`auto` uses a GPU if there is one; `cuda` and `tensorrt` fail if they cannot run."""
    engine: Engine = "onnx"
    """`onnx` runs the model in ONNX Runtime. `torch` runs it in PyTorch, which compiles it first on a GPU. This takes
    time and is meant for many scans of one size."""
    address: str | None = None
    """Ray cluster that runs the replicas: HOST:PORT, or `auto` for the cluster of this node. By default, the replicas
    run on this machine."""
    replicas: int = 1
    """Smallest number of replicas, the processes that restore slices."""
    max_replicas: int | None = None
    """Largest number of replicas. Replicas are added while slices wait, and removed when none do. At most
    `scans_at_once`, because one scan keeps one replica busy. Default: `replicas`."""
    cores_per_replica: int = 0
    """CPU cores of each replica. 0 divides this machine's cores among them; on a cluster, each replica gets one."""
    gpus_per_replica: float = 1.0
    """GPUs of each replica; a value below 1 is a share of one GPU. Replicas use no GPU if there is none, or with
    `device: cpu`."""
    batch_size: int = 4
    """Slices in a batch, from one scan or several. `upfield enhance` computes the same values with the same size."""
    scans_at_once: int = 4
    """Number of scans that are processed at the same time. The voxels of each of them are held in memory."""
    max_queue: int = 16
    """Number of further scans that may wait in the queue. If it is full, a scan is refused with status 503, and the
    response says when to try again."""
    timeout_s: float = 900.0
    """Longest time from a request's first byte to its response, in seconds. A request that takes longer is refused with
    status 504."""
    idle_timeout_s: float = 30.0
    """Longest time that a client may send or accept no data, in seconds. If an upload pauses for longer, it is refused
    with status 408. If the client accepts no part of the response for longer, the connection is closed."""
    max_body_bytes: int = 256 * 2**20
    """Largest upload, in bytes."""
    max_decompressed_bytes: int = 2**30
    """Largest content of a compressed upload after decompression, in bytes."""
    max_voxels: int = 2**27
    """Largest number of voxels of a scan, both as stored and after interpolation to 1 mm."""
    token_file: Path | None = None
    """File with the token that requests must carry. Alternatively, set the environment variable UPFIELD_TOKEN."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Host names that requests may be sent to besides this machine's own, for instance `[NAME]` for the name that a
    proxy forwards. If the list is empty, a service that other machines can reach accepts every name."""

    def __post_init__(self) -> None:
        """Raise ValueError for values that the service cannot run with."""
        for name, minimum in SERVE_MINIMA.items():
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name}: expected at least {minimum}, found {getattr(self, name)}.")
        if self.port > 65535:
            raise ValueError(f"port: expected at most 65535, found {self.port}.")
        for name in ("timeout_s", "idle_timeout_s"):
            if not isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number of seconds, found {getattr(self, name)}.")
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path, re.ASCII):
            raise ValueError(f"root_path: expected a path such as /mri, without a last slash, found {self.root_path}.")
        if wildcards := [name for name in self.allowed_hosts if "*" in name]:
            raise ValueError(f"allowed_hosts: {wildcards[0]} contains a wildcard. Write out each name.")
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
            raise ValueError(f"gpus_per_replica: expected a whole number or a share below 1, found {gpus}.")


SERVE_MINIMA = {
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
