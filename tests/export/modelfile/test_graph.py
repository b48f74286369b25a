"""The graph computes what PyTorch computes for networks of any size, and damaged graphs are refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from upfield.common.errors import RunError
from upfield.export.modelfile.card import write_card
from upfield.export.modelfile.graph import build_graph, check_graph, check_size, write_model
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.model.amir import Amir, AmirConfig

SMALL = {"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1, "num_tokens": 4}
CARD = dict.fromkeys(("config", "data_sha256", "geometry", "model", "normalisation", "step"), "") | {"context": 0}
ISLANDS = ("LayerNormalization", "Softmax", "LogSoftmax", "ReduceSumSquare", "ReduceLogSumExp", "TopK")


def make_network(**sizes) -> Amir:
    torch.manual_seed(0)
    network = Amir(AmirConfig(**(SMALL | sizes))).eval()
    # With the initial values of these parameters, 0 or 1, an error in their nodes could not be noticed.
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("gamma", "beta", "temperature", "body.bias")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def write(network: Amir, path: Path, half: bool = False, **how) -> Path:
    model = build_graph(network, half)
    with write_model(model, path, **how):
        write_card(model, CARD)
    return path


def images(channels: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).random((2, channels, height, width), np.float32)


def restore(network: Amir, low: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(low)).numpy()


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"in_channels": 5},
        {"num_experts": 2},
        {"num_experts": 5},
        {"heads": (2, 4, 4, 8)},
        {"dim": 16, "ffn_expansion": 2.0},
        {"dim": 6, "heads": (1, 2, 3, 4), "ffn_expansion": 2.66},
        {"num_blocks": (0, 1, 0, 0), "num_refinement_blocks": 0},
    ],
)
@pytest.mark.parametrize("size", [(9, 9), (16, 24), (37, 61)])
def test_the_graph_computes_the_same_as_pytorch(tmp_path: Path, sizes: dict, size: tuple[int, int]) -> None:
    network = make_network(**sizes)
    low = images(network.config.in_channels, *size)
    restored = OnnxRestorer(write(network, tmp_path / "model.onnx"), "cpu").run(low)
    np.testing.assert_allclose(restored, restore(network, low), atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_half_precision_stays_near_pytorch(tmp_path: Path, channels: int) -> None:
    network = make_network(in_channels=channels)
    low = images(channels, 37, 61)
    restored = OnnxRestorer(write(network, tmp_path / "model.onnx", half=True), "cpu").run(low)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, restore(network, low), atol=0.02)


def test_half_precision_keeps_only_its_islands_in_float32() -> None:
    model = onnx.shape_inference.infer_shapes(build_graph(make_network(), half=True), data_prop=True)
    known = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        kind = types[node.input[0]]
        if node.op_type in ISLANDS:
            seen[node.op_type] += 1
            assert kind == onnx.TensorProto.FLOAT, node.op_type
        if node.op_type == "Conv" and node.attribute and "group" in {attribute.name for attribute in node.attribute}:
            assert kind == onnx.TensorProto.FLOAT16
    assert set(seen) == set(ISLANDS)


def test_half_precision_halves_the_weights() -> None:
    network = make_network(dim=32)
    whole, half = (build_graph(network, half).ByteSize() for half in (False, True))
    assert half < 0.6 * whole


def test_the_graph_is_of_opset_20_or_later_and_of_standard_operators() -> None:
    model = build_graph(make_network(), half=False)
    assert [(opset.domain, opset.version >= 20) for opset in model.opset_import] == [("", True)]
    assert {node.domain for node in model.graph.node} == {""}
    dims = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
    assert dims == [["N", 1, "H", "W"]]


def test_the_graph_has_no_operator_that_some_versions_run_on_the_cpu() -> None:
    assert "Pad" not in {node.op_type for node in build_graph(make_network(), half=False).graph.node}


def test_a_model_too_large_for_one_file_has_its_weights_in_a_second(tmp_path: Path) -> None:
    network, low = make_network(), images(1, 24, 28)
    whole = write(network, tmp_path / "one/model.onnx")
    parted = write(network, tmp_path / "two/model.onnx", max_bytes=100_000)
    names = sorted(path.name for path in parted.parent.iterdir())
    assert len(names) == 2
    assert names[1] == "model.onnx"
    assert parted.stat().st_size < 200_000 < whole.stat().st_size
    check_graph(parted)
    np.testing.assert_array_equal(OnnxRestorer(parted, "cpu").run(low), OnnxRestorer(whole, "cpu").run(low))


def test_a_model_that_fits_is_one_file(tmp_path: Path) -> None:
    path = write(make_network(), tmp_path / "model.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("max_bytes", [100_000, 10**9])
def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path: Path, max_bytes: int) -> None:
    old = write(make_network(), tmp_path / "model.onnx")
    before = old.read_bytes()
    other = build_graph(make_network(dim=16), half=False)

    def fail() -> None:
        with write_model(other, old, max_bytes=max_bytes):
            raise RunError("off")

    with pytest.raises(RunError, match="off"):
        fail()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_a_failure_keeps_the_weights_file_of_an_equal_model(tmp_path: Path) -> None:
    network = make_network()
    write(network, tmp_path / "model.onnx", max_bytes=100_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 2

    def fail() -> None:
        with write_model(build_graph(network, half=False), tmp_path / "model.onnx", max_bytes=100_000):
            raise RunError("off")

    with pytest.raises(RunError, match="off"):
        fail()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_graph_without_some_weights_is_refused() -> None:
    network = make_network(dim=16)
    model = build_graph(network, half=False)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.ClearField("raw_data")
    with pytest.raises(RunError, match="expected a graph of about"):
        check_size(model, network, half=False)


def test_a_graph_with_weights_stored_twice_is_refused() -> None:
    network = make_network(dim=32)
    model = build_graph(network, half=False)
    model.graph.initializer.extend(list(model.graph.initializer))
    with pytest.raises(RunError, match="expected a graph of about"):
        check_size(model, network, half=False)


def test_a_graph_with_an_unknown_input_is_refused(tmp_path: Path) -> None:
    model = build_graph(make_network(), half=False)
    model.graph.node[5].input[0] = "nowhere"
    onnx.save_model(model, tmp_path / "model.onnx")
    with pytest.raises(RunError, match="the ONNX graph is invalid"):
        check_graph(tmp_path / "model.onnx")
