"""Whatever can be evaluated, behind one face: a run's best model in PyTorch, or a model file in ONNX Runtime."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from upfield.common.allocator import keep_freed_memory
from upfield.common.errors import InputError
from upfield.common.files import hash_file
from upfield.export.scans.restoration import Restorer
from upfield.export.scans.restorer import OnnxRestorer
from upfield.model.weights import MODEL, read_best
from upfield.sharding.shardset.manifest import Manifest


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as reports state it."""

    path: str
    """As it was given."""
    step: int
    """Optimizer steps it was trained for."""
    runtime: str
    """What computes it, and on what."""
    sha256: str
    """Of the weights, or of the model file."""
    trained_on_sha256: str
    """Hash of the shard set that it was trained on."""

    @property
    def description(self) -> str:
        """In a line."""
        return f"{self.path} (step {self.step}), {self.runtime}"


class NamedRestorer(Restorer, Protocol):
    """A restorer that can say what it is."""

    origin: Origin
    configuration: str
    """Of its training, as YAML."""


class TorchRestorer:
    """Restores batches of slices with a run's best model."""

    def __init__(self, run: Path, device: str = "auto") -> None:
        """Load the model.

        Args:
            run: folder of the run.
            device: `auto`, `cuda` or `cpu`.

        Raises:
            InputError: no best model there, or CUDA asked for where it cannot run.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("device: expected a GPU for --device cuda, found none; use auto or cpu")
        on_gpu = device != "cpu" and torch.cuda.is_available()
        self._device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
        if not on_gpu:
            keep_freed_memory()
        try:
            best = read_best(run / "best")
        except ValueError as error:
            raise InputError(str(error)) from error
        self._network = best.network.to(self._device)
        self.context, self.normalisation = best.context, best.normalisation
        weights = hash_file(run / "best" / MODEL)
        self.origin = Origin(
            str(run), best.step, f"PyTorch on {self._device.type}, best model", weights, best.data_sha256
        )
        self.configuration = yaml.safe_dump(best.config, sort_keys=False)

    @torch.inference_mode()
    def restore(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map `(N, 1 + 2*context, H, W)` in [0, 1] to `(N, 1, H, W)` in [0, 1]."""
        return self._network(torch.from_numpy(low).to(self._device)).clamp(0, 1).cpu().numpy()


class OnnxFile(OnnxRestorer):
    """A model file that can say what it is."""

    def __init__(self, path: Path, device: str = "auto") -> None:
        """Load the file; see OnnxRestorer."""
        super().__init__(path, device)
        tree: dict[str, Any] = self.card.tree
        runtime = f"ONNX Runtime, {self.provider}"
        self.origin = Origin(str(path), tree["step"], runtime, hash_file(path), tree["data_sha256"])
        self.configuration = yaml.safe_dump(tree["config"], sort_keys=False)


def open_restorer(model: Path, device: str, manifest: Manifest) -> NamedRestorer:
    """Open a run or a model file, and make sure that it fits a shard set.

    Raises:
        InputError: neither of the two, or trained on another context or normalisation.
    """
    if not model.exists():
        raise InputError(f"{model}: expected the folder of a run or an .onnx file, found nothing; check the path")
    if model.is_file() and model.suffix != ".onnx":
        raise InputError(f"{model}: expected the folder of a run or an .onnx file, found another file")
    restorer = TorchRestorer(model, device) if model.is_dir() else OnnxFile(model, device)
    for name in ("context", "normalisation"):
        theirs, ours = getattr(restorer, name), getattr(manifest, name)
        if theirs != ours:
            raise InputError(f"{model}: expected a model of {name} {ours!r} like the shard set's, found {theirs!r}")
    return restorer
