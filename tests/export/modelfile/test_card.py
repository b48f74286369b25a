"""Unusable metadata and files that are not model files are refused, and the error states the reason."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from upfield.common.errors import InputError
from upfield.export.modelfile.card import VERSION, is_model_file, read_card
from upfield.export.modelfile.onnx_restorer import OnnxRestorer


@pytest.fixture
def altered(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that copies the model with other metadata; a key whose value is None is left out."""

    def alter(**values: str | None) -> Path:
        model = onnx.load_model(tiny_model)
        custom = {entry.key: entry.value for entry in model.metadata_props} | values
        del model.metadata_props[:]
        for key, value in custom.items():
            if value is not None:
                model.metadata_props.add(key=key, value=value)
        onnx.save_model(model, tmp_path / "altered.onnx")
        return tmp_path / "altered.onnx"

    return alter


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": None}, "the metadata of a model file is missing"),
        ({"format": json.dumps("another")}, f"expected format upfield-model {VERSION}, found another {VERSION}"),
        ({"format_version": json.dumps(VERSION + 1)}, "which a newer upfield wrote. Update upfield."),
        (
            {"format_version": json.dumps(VERSION - 1)},
            "found 1, which normalises scans differently. Export the run",
        ),
        ({"context": "no JSON"}, "its metadata is not valid JSON"),
        ({"context": None, "step": None}, "its metadata lacks context, step"),
    ],
)
def test_unusable_metadata_is_refused(altered: Callable, values: dict, message: str) -> None:
    path = altered(**values)
    with pytest.raises(InputError, match=message) as refused:
        OnnxRestorer(path, "cpu")
    assert str(path) in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_card(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="is a folder"):
        read_card(tmp_path)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tiny_model: Path, tmp_path: Path, kept: float) -> None:
    content = tiny_model.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match="is not an ONNX file, or is truncated or damaged"):
        OnnxRestorer(path, "cpu")
    assert not is_model_file(path)


def test_a_flipped_bit_in_weights_or_layers_is_noticed(tiny_model: Path, tmp_path: Path) -> None:
    content = tiny_model.read_bytes()
    graph = onnx.load_model(tiny_model).graph
    (largest,) = sorted(graph.initializer, key=lambda tensor: len(tensor.raw_data))[-1:]
    node = next(node for node in graph.node if node.op_type == "Conv")
    path = tmp_path / "model.onnx"
    for start in (content.index(largest.raw_data), content.index(node.op_type.encode())):
        damaged = bytearray(content)
        damaged[start + 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="the file is damaged: its weights or layers"):
            OnnxRestorer(path, "cpu")


def test_a_file_without_a_hash_is_opened(altered: Callable) -> None:
    assert read_card(altered(graph_sha256=None)).context == 0


@pytest.mark.parametrize("size_threshold", [0, 1024])
def test_weights_in_a_second_file_are_checked_too(tiny_model: Path, tmp_path: Path, size_threshold: int) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(
        onnx.load_model(tiny_model), path, save_as_external_data=True, location="w", size_threshold=size_threshold
    )
    card = read_card(path)
    assert card == read_card(tiny_model)
    content = bytearray((tmp_path / "w").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(InputError, match="the file is damaged"):
        read_card(path)
    (tmp_path / "w").unlink()
    with pytest.raises(InputError, match="its weight file cannot be read"):
        read_card(path)


@pytest.mark.parametrize("content", [b"", b"no model", bytes(1000), b"\x1f\x8b" + bytes(100)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not an ONNX file, or is truncated or damaged"):
        OnnxRestorer(path, "cpu")


def test_an_onnx_file_of_another_program_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [value], [result])
    onnx.save_model(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(InputError, match="the metadata of a model file is missing"):
        OnnxRestorer(tmp_path / "other.onnx", "cpu")
    assert not is_model_file(tmp_path / "other.onnx")
