"""A model file computes what PyTorch computes, at any size, and says what it is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from upfield.export.restorer import OnnxRestorer
from upfield.export.to_onnx import main
from upfield.model.weights import load_model


@pytest.mark.parametrize("shape", [(1, 1, 9, 9), (3, 1, 24, 28), (2, 1, 37, 61)])
def test_the_graph_takes_any_batch_and_size(tiny_run: Path, tiny_model: Path, shape: tuple[int, ...]) -> None:
    rows, columns = np.meshgrid(np.linspace(0, 1, shape[2]), np.linspace(0, 3, shape[3]), indexing="ij")
    low = np.broadcast_to(rows * np.cos(columns) ** 2, shape).astype(np.float32)
    with torch.inference_mode():
        expected = load_model(tiny_run / "best" / "model.safetensors")(torch.from_numpy(low.copy())).numpy()
    np.testing.assert_allclose(OnnxRestorer(tiny_model, "cpu").run(low), expected, atol=1e-5)


def test_the_metadata_say_what_the_model_is(tiny_model: Path, tiny_shards: Path) -> None:
    card = OnnxRestorer(tiny_model, "cpu").card.tree
    manifest = json.loads((tiny_shards / "manifest.json").read_text())
    assert card["data_sha256"] == manifest["data_sha256"]
    assert card["normalisation"] == manifest["normalisation"]
    assert card["context"] == 0
    assert card["config"]["model"]["preset"] == "tiny"
    assert card["metrics"]["validation"]["slices"] == 20
    assert card["parity"]["max_abs_difference"] < 1e-4
    assert len(card["parity"]["sizes"]) == 3


def test_the_file_names_no_folder_of_the_machine_that_wrote_it(tiny_model: Path, tiny_shards: Path) -> None:
    content = onnx.load_model(tiny_model).SerializeToString()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert str(tiny_shards).encode() not in content


def test_restored_slices_are_within_range(tiny_model: Path) -> None:
    restored = OnnxRestorer(tiny_model, "cpu").restore(np.random.default_rng(0).random((2, 1, 16, 16), np.float32))
    assert restored.min() >= 0
    assert restored.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "model.onnx"], "expected a run's best model"),
        (["RUN", "--out", "model.pt"], "expected a name ending in .onnx"),
        (["RUN", "--out", "model.onnx", "--precision", "fp16"], "expected fp32"),
        (["RUN", "--out", "model.onnx", "--shards", "nowhere"], "expected a complete shard set"),
        (["RUN"], "expected --out"),
    ],
)
def test_bad_input_is_refused(
    tiny_run: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli(main, *(tiny_run if argument == "RUN" else argument for argument in arguments))
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"no model"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="expected an ONNX file"):
        OnnxRestorer(path)
