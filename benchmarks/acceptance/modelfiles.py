"""Model files of networks that were not trained."""

from pathlib import Path

from upfield.common.command import to_tree
from upfield.export.modelfile.card import write_card
from upfield.export.modelfile.graph import build_graph
from upfield.imaging.normalisation import NORMALISATION
from upfield.model.amir import Amir
from upfield.sharding.configuration import GeometryConfig


def write_untrained_model(network: Amir, path: Path, precision: str) -> None:
    """Write a model file with the metadata that the engines need.

    Args:
        network: in evaluation mode, on the CPU, without neighbouring slices.
        path: the file.
        precision: `fp32` or `fp16`.
    """
    model = build_graph(network, half=precision == "fp16")
    tree = {"config": {}, "context": 0, "data_sha256": "", "normalisation": NORMALISATION, "step": 0}
    tree["geometry"] = to_tree(GeometryConfig())
    write_card(model, tree | {"model": network.config.to_tree(), "precision": precision})
    path.write_bytes(model.SerializeToString())
