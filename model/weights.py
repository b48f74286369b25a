"""Weight files: safetensors that hold the network's sizes, and the published checkpoint format."""

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
    """In evaluation mode, on the CPU."""
    config: dict[str, Any]
    """The training configuration, as plain values."""
    step: int
    """Optimizer steps it was trained for."""
    context: int
    """Neighbouring slices on each side of the restored one."""
    normalisation: str
    """How intensities must be normalised to [0, 1]."""
    data_sha256: str
    """Data hash of the shard set it was trained on."""
    validation: dict[str, Any]
    """Figures on the validation split."""


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
        return BestModel(network, dict(config), **{name: record[name] for name in names})
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: {CONFIG} or {METRICS} is damaged: {error}") from error


def save_model(model: Amir, path: Path) -> None:
    """Write a network's weights and sizes to one safetensors file."""
    save_weights(model.state_dict(), model.config, path)


def save_weights(state: dict[str, Tensor], config: AmirConfig, path: Path) -> None:
    """Write a state_dict with the shapes of a network of `config`, and its sizes, to one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(config.to_tree())})


def load_model(path: Path) -> Amir:
    """Read a network with its sizes, in evaluation mode on the CPU.

    Raises:
        ValueError: the file was not written by `save_weights`, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            sizes = (file.metadata() or {}).get(METADATA_KEY)
        if sizes is None:
            raise ValueError(f"its metadata holds no sizes under {METADATA_KEY!r}")
        model = Amir(AmirConfig.from_tree(json.loads(sizes)))
        model.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a weight file of upfield: {error}") from error
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights to start from: safetensors, or a published `.pth`, from which only tensors are loaded.

    Returns:
        Tensors of the network's shapes by the name of their parameter or buffer.

    Raises:
        ValueError: the file is neither of the two.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the errors of torch.load on other files have no common base
        # The message leaves out its text, which advises to load the file unsafely.
        kind = type(error).__name__
        raise ValueError(f"{path}: not a file of weights that holds only tensors ({kind}).") from error
    for key in ("state_dict", "params", "model"):
        tree = tree.get(key, tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise ValueError(f"{path}: expected a state_dict of tensors, found {type(tree).__name__}.")
    # A parallel wrapper adds this prefix to the names in its checkpoints.
    return {name.removeprefix("module."): tensor for name, tensor in tree.items()}
