"""One interface for the models to evaluate: a run's best model in PyTorch, or a model file in an engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from upfield.common.errors import InputError
from upfield.common.files import hash_file
from upfield.common.grammar.suggestions import nearest
from upfield.common.places import recognise, shown_whole
from upfield.evaluation.configuration import EvaluateConfig
from upfield.evaluation.measurements import AGAINST, MODEL
from upfield.export.configuration import Engine
from upfield.export.modelfile.engines import open_model_file
from upfield.export.pretrained.packaged_model import model_names
from upfield.export.scans.best_restorer import BestRestorer
from upfield.export.scans.restoration import Restorer
from upfield.model.weights import MODEL as WEIGHTS
from upfield.sharding.shardset.manifest import Manifest


@dataclass(frozen=True)
class ModelOrigin:
    """The origin of a model, for reports."""

    path: str
    """Path of the run or model file, as the user wrote it."""
    step: int
    """Number of optimizer steps that the model was trained for."""
    runtime: str
    """Library and device that run the model."""
    sha256: str
    """Hash of the weights, or of the model file."""
    trained_on_sha256: str
    """Data hash of the shard set that it was trained on."""

    @property
    def description(self) -> str:
        """The path, the step and the runtime in one line."""
        return f"{self.path} (step {self.step}), {self.runtime}"


class ModelRestorer(Restorer, Protocol):
    """A restorer that knows the origin and the training configuration of its model."""

    origin: ModelOrigin
    configuration: str
    """Training configuration of the model, as YAML."""


class RunRestorer(BestRestorer):
    """Restores batches of slices with a run's best model, and knows the origin of the model."""

    def __init__(self, run: Path, device: str = "auto") -> None:
        """Load the best model of a run.

        Args:
            run: the run folder.
            device: `auto`, `cuda` or `cpu`.

        Raises:
            InputError: the run has no best model, or `device` is `cuda` and there is no GPU.
        """
        super().__init__(run, device)
        best, runtime = self.best, f"{self.provider}, best model"
        self.origin = ModelOrigin(str(run), best.step, runtime, hash_file(run / "best" / WEIGHTS), best.data_sha256)
        self.configuration = yaml.safe_dump(best.config, sort_keys=False)


class ModelFileRestorer:
    """Restores batches of slices with a model file, and knows the origin of the model."""

    def __init__(self, path: Path, device: str = "auto", engine: Engine = "onnx", batch_size: int = 0) -> None:
        """Load a model file.

        Args:
            path: the `.onnx` file.
            device: `auto`, `cuda` or `cpu`.
            engine: `onnx` (ONNX Runtime) or `torch` (PyTorch).
            batch_size: on a GPU, smaller batches are padded to this many slices; 0 pads nothing.

        Raises:
            InputError: the file is missing or is not a model file of upfield, or the device cannot run it.
        """
        restorer = open_model_file(path, engine, device, batch_size=batch_size)
        self.restore = restorer.restore
        self.context, self.normalisation = restorer.context, restorer.normalisation
        tree: dict[str, Any] = restorer.card.tree
        runtime = f"ONNX Runtime, {restorer.provider}" if engine == "onnx" else f"{restorer.provider}, model file"
        self.origin = ModelOrigin(str(path), tree["step"], runtime, hash_file(path), tree["data_sha256"])
        self.configuration = yaml.safe_dump(tree["config"], sort_keys=False)


def open_restorers(model: Path, config: EvaluateConfig, manifest: Manifest) -> dict[str, ModelRestorer]:
    """Open a model as `MODEL` and, if there is one, the model that it is compared with as `AGAINST`.

    Raises:
        InputError: a model cannot be opened, or does not fit the shard set.
    """
    models = {MODEL: model} | ({AGAINST: config.against} if config.against else {})
    return {role: open_restorer(path, config, manifest) for role, path in models.items()}


def _refuse_other_place(model: Path) -> None:
    """Raise InputError if a path is neither the folder of a run nor a model file."""
    found = recognise(model)
    if found and found.kind not in ("the folder of a run", "a model file"):
        remedies = {
            "a part of a run": f"Name the folder of the run, {shown_whole(found)}",
            "a shard set": "Name it with --shards, and a run or a model file without a flag",
            "a scan": "Name a run or a model file, because upfield evaluate takes its scans from the shard set",
        }
        remedy = remedies.get(found.kind, "Name the folder of a run or a model file")
        raise InputError(f"{model} is {found.kind}, not a model. {remedy}.")
    if model.is_file() and model.suffix != ".onnx":
        raise InputError(f"{model}: this is neither a run folder nor an .onnx file. Check the path.")


def open_restorer(model: Path, config: EvaluateConfig, manifest: Manifest) -> ModelRestorer:
    """Open a run or a model file, and check that it fits a shard set.

    Args:
        model: run folder, or an `.onnx` file.
        config: the device, and for an `.onnx` file also the engine and the size of batches.
        manifest: manifest of the shard set.

    Raises:
        InputError: `model` is neither a run nor a model file, or was trained with another normalisation.
    """
    if not model.exists():
        raise InputError(
            f"{model}: there is no such run or .onnx file, and no packaged model of this name"
            f"{nearest(str(model), model_names())}. Check the path, or list the models with upfield models."
        )
    _refuse_other_place(model)
    if model.is_dir():
        restorer = RunRestorer(model, config.device)
    else:
        restorer = ModelFileRestorer(model, config.device, config.engine, config.batch_size)
    if restorer.normalisation != manifest.normalisation:
        raise InputError(
            f"{model}: expected a model trained with normalisation {manifest.normalisation!r}, as in the shard set, "
            f"found {restorer.normalisation!r}. Choose another model, or build the shard set with the model's "
            "normalisation."
        )
    return restorer
