"""Weight files: safetensors files that also hold the network's sizes, and published checkpoints."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from upfield.model.amir import Amir, AmirConfig

METADATA_KEY = "amir"
MODEL, CONFIG, METRICS = "model.safetensors", "config.yaml", "metrics.json"


@dataclass(frozen=True)
class BestModel:
    """The content of a run's `best` folder."""

    network: Amir
    """The network in evaluation mode, on the CPU."""
    config: dict[str, Any]
    """The training configuration, as plain values."""
    step: int
    """Number of steps for which the network was trained."""
    context: int
    """Number of neighbouring slices on each side of the restored slice."""
    normalisation: str
    """The normalisation of intensities to [0, 1] with which the network was trained."""
    data_sha256: str
    """Data hash of the shard set on which the network was trained."""
    validation: dict[str, Any]
    """Figures on the validation split."""
    geometry: dict[str, Any] | None = None
    """Grids of the shard set, as plain values; None if they are not known, as in runs of earlier versions."""
    contrast: str | list[str] | None = None
    """Contrast or contrasts of the shard set; None if they are not known, as in runs of earlier versions."""
    skull_stripped: bool | None = None
    """Whether the scans of the set show brains without skull; None if this is not known or differs."""


def read_best(folder: Path) -> BestModel:
    """Read a run's best model.

    Args:
        folder: `RUN/best`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if missing := [name for name in (MODEL, CONFIG, METRICS) if not (folder / name).is_file()]:
        raise ValueError(f"{folder}: {missing[0]} is missing from the best model. Train until the first validation.")
    network = load_model(folder / MODEL)
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        record = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        names = ("step", "context", "normalisation", "data_sha256", "validation")
        found = {name: record[name] for name in names}
        found |= {name: record.get(name) for name in ("geometry", "contrast", "skull_stripped")}
        return BestModel(network, dict(config), **found)
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: {CONFIG} or {METRICS} is damaged: {error}") from error


def save_model(model: Amir, path: Path) -> None:
    """Write a network's weights and sizes to one safetensors file."""
    save_weights(model.state_dict(), model.config, path)


def save_weights(state: dict[str, Tensor], config: AmirConfig, path: Path) -> None:
    """Write the state_dict of a network, and the network's sizes, to one safetensors file.

    Args:
        state: tensors with the shapes of a network of `config`, by name.
        config: sizes of the network.
        path: file to write."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(config.to_tree())})


def load_model(path: Path) -> Amir:
    """Read a network from a file of `save_weights`. The network is in evaluation mode on the CPU.

    Raises:
        ValueError: the file was not written by `save_weights`, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            sizes = (file.metadata() or {}).get(METADATA_KEY)
        if sizes is None:
            raise ValueError(f"the metadata holds no network sizes under {METADATA_KEY!r}")
        model = Amir(AmirConfig.from_tree(json.loads(sizes)))
        model.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a weight file of upfield: {error}") from error
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read initial weights from a safetensors file or a published `.pth` file. No code in the file is executed.

    Returns:
        Tensors by the name of their parameter or buffer, with the shapes of the network that was saved.

    Raises:
        ValueError: the file is neither a safetensors file nor a checkpoint that holds only tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors without a common base class
        # The message omits the text of the error, which advises the user to load the file unsafely.
        kind = type(error).__name__
        raise ValueError(f"{path}: not a weight file that holds only tensors ({kind}).") from error
    for key in ("state_dict", "params", "model"):
        tree = tree.get(key, tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        found = "other objects" if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{path}: expected a state_dict of tensors, found {found}.")
    # Wrappers for data parallelism add this prefix to the names in their checkpoints.
    return {name.removeprefix("module."): tensor for name, tensor in tree.items()}
