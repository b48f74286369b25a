"""The service's model: checked before anything starts, and described to clients."""

from importlib.metadata import version
from typing import Any

from upfield.common.errors import InputError
from upfield.common.files import hash_file
from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.engines import open_model_file
from upfield.export.pretrained.packaged_model import describe_model
from upfield.export.scans.provenance import RESEARCH_USE
from upfield.imaging.normalisation import NORMALISATION


def read_model(config: ServeConfig) -> ModelCard:
    """Load a model file to check that it runs on the configured device, and return its metadata.

    Raises:
        InputError: the file cannot be used, its normalisation differs from this version's, or the device is missing.
    """
    # The nodes of a cluster may have GPUs that this machine lacks.
    device = "cpu" if config.address else config.device
    card = open_model_file(config.model, config.engine, device, batch_size=config.batch_size).card
    if card.normalisation != NORMALISATION:
        raise InputError(
            f"{config.model}: expected a model with normalisation {NORMALISATION!r}, found {card.normalisation!r}. "
            "Use the version of upfield that exported it."
        )
    return card


def model_info(config: ServeConfig, card: ModelCard, provider: str) -> dict[str, Any]:
    """Return the description of the model that `/model` sends.

    Args:
        config: the service's configuration.
        card: the model's metadata.
        provider: what runs the model, or the configured device.
    """
    return (
        card.tree
        | describe_model(config.model)
        | {
            "file": config.model.name,
            "sha256": hash_file(config.model),
            "provider": provider,
            "batch_size": config.batch_size,
            "versions": {name: version(name) for name in ("upfield", "onnx", "ray", "fastapi")},
            "note": RESEARCH_USE,
        }
    )
