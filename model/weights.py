"""Weight files: safetensors that carry the network's sizes, and the published checkpoint format."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from upfield.model.amir import Amir, AmirConfig

METADATA_KEY = "amir"


def save_model(model: Amir, path: Path) -> None:
    """Write a network's weights and sizes to one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(model.config.to_tree())})


def load_model(path: Path) -> Amir:
    """Read a network with its sizes, in evaluation mode on the CPU.

    Raises:
        ValueError: not a weight file of ours, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        model = Amir(AmirConfig.from_tree(json.loads(metadata[METADATA_KEY])))
        model.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: expected a network's weights with its sizes, found {error}") from error
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights to start from: safetensors, or a published `.pth` (tensors only: nothing in it is run).

    Returns:
        Tensor per parameter or buffer name, of the network's shapes.

    Raises:
        ValueError: neither of the two.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: expected weights, found a file that holds none: {reason}") from error
    for key in ("state_dict", "params", "model"):
        tree = tree.get(key, tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise ValueError(f"{path}: expected a state_dict of tensors, found {type(tree).__name__}")
    # Checkpoints saved from a parallel wrapper carry its prefix.
    return {name.removeprefix("module."): tensor for name, tensor in tree.items()}
