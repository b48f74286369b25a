"""The weights come back from a model file exactly, and files of other versions are refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from upfield.common.errors import InputError
from upfield.export.modelfile.card import ModelCard, read_card, write_card
from upfield.export.modelfile.graph import build_graph, write_model
from upfield.export.modelfile.stored_weights import read_network
from upfield.model.amir import Amir, AmirConfig

SMALL = {"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1, "num_tokens": 4}


def make_network(**sizes) -> Amir:
    torch.manual_seed(0)
    return Amir(AmirConfig(**(SMALL | sizes))).eval()


def write(network: Amir, path: Path, half: bool = False, **how) -> tuple[Path, ModelCard]:
    model = build_graph(network, half)
    with write_model(model, path, **how):
        tree = {"config": {}, "context": 0, "data_sha256": "", "geometry": {}, "normalisation": "", "step": 0}
        write_card(model, tree | {"model": network.config.to_tree()})
    return path, read_card(path)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"in_channels": 5, "num_experts": 2}, {"dim": 6, "heads": (1, 2, 3, 4), "ffn_expansion": 2.66}],
)
def test_weights_come_back_exactly(tmp_path: Path, sizes: dict, half: bool) -> None:
    network = make_network(**sizes)
    stored = read_network(*write(network, tmp_path / "model.onnx", half))
    precision = torch.float16 if half else torch.float32
    for (name, expected), found in zip(network.named_parameters(), stored.parameters(), strict=True):
        if not name.endswith("w_noise"):
            close = torch.isclose(found, expected, rtol=1e-3 if half else 0, atol=1e-7 if half else 0)
            assert close.all(), (name, precision)


def test_weights_come_back_from_a_second_file(tmp_path: Path) -> None:
    network = make_network()
    path, card = write(network, tmp_path / "model.onnx", max_bytes=100_000)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(read_network(path, card).output.weight, network.output.weight)
    next(tmp_path.glob("*.data")).unlink()
    with pytest.raises(InputError, match="its weights cannot be read"):
        read_network(path, card)


def add_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["high"], ["copy"]))


def change_attribute(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "LeakyRelu").attribute[0].f = 0.2


def change_wire(model: onnx.ModelProto) -> None:
    add = [node for node in model.graph.node if node.op_type == "Add"][-1]
    add.input[1] = add.input[0]


def change_constant(model: onnx.ModelProto) -> None:
    name = next(node for node in model.graph.node if node.op_type == "Less").input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.array(-1, dtype=np.float32), name))


def change_padding(model: onnx.ModelProto) -> None:
    name = next(node for node in model.graph.node if node.op_type == "Conv" and "low" not in node.input).input[1]
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4 and values.shape[2:] == (1, 1) and not values[-1].any() and tensor.name != name:
            tensor.CopyFrom(numpy_helper.from_array(values + 1, tensor.name))


@pytest.mark.parametrize("change", [add_node, change_attribute, change_wire, change_constant, change_padding])
def test_a_graph_of_another_version_is_refused(tmp_path: Path, change) -> None:
    path, card = write(make_network(), tmp_path / "model.onnx")
    model = onnx.load_model(path)
    change(model)
    onnx.save_model(model, path)
    with pytest.raises(InputError, match=r"another version of upfield wrote its graph .*use --engine onnx"):
        read_network(path, card)


def test_invalid_sizes_are_refused(tmp_path: Path) -> None:
    path, card = write(make_network(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="the sizes of its network are invalid"):
        read_network(path, ModelCard(card.tree | {"model": {"dim": "eight"}}))
