"""PyTorch restores the same slices from a model file as ONNX Runtime, in the same places."""

from pathlib import Path

import numpy as np
import pytest
import torch

from upfield.common.errors import InputError, RunError
from upfield.export.configuration import Engine
from upfield.export.modelfile.card import read_card, write_card
from upfield.export.modelfile.engines import open_model_file
from upfield.export.modelfile.file_restorer import pad_batch
from upfield.export.modelfile.graph import build_graph
from upfield.export.modelfile.stored_weights import read_network
from upfield.export.modelfile.torch_restorer import TorchRestorer

HAS_GPU = torch.cuda.is_available()


def images(count: int, height: int = 24, width: int = 28) -> np.ndarray:
    return np.random.default_rng(count).random((count, 1, height, width), np.float32)


@pytest.mark.parametrize("size", [(9, 9), (24, 28), (37, 61)])
def test_both_engines_restore_the_same_slices(tiny_model: Path, size: tuple[int, int]) -> None:
    low = images(3, *size)
    onnx, torch_ = (open_model_file(tiny_model, engine, "cpu").run(low) for engine in ("onnx", "torch"))
    assert torch_.dtype == np.float32
    np.testing.assert_allclose(torch_, onnx, atol=1e-5)


def test_half_precision_stays_near_onnx_runtime(tiny_model: Path, tmp_path: Path) -> None:
    path, low, card = tmp_path / "model.onnx", images(2), read_card(tiny_model)
    model = build_graph(read_network(tiny_model, card), half=True)
    write_card(model, card.tree | {"precision": "fp16"})
    path.write_bytes(model.SerializeToString())
    onnx, torch_ = (open_model_file(path, engine, "cpu").run(low) for engine in ("onnx", "torch"))
    np.testing.assert_allclose(torch_, onnx, atol=0.02)


def test_slices_do_not_depend_on_their_batch_and_may_be_read_only(tiny_model: Path) -> None:
    restorer, low = TorchRestorer(tiny_model, "cpu"), images(3)
    low.flags.writeable = False
    alone = np.concatenate([restorer.restore(low[number : number + 1]) for number in range(3)])
    np.testing.assert_array_equal(restorer.restore(low), alone)


def test_small_batches_are_filled_with_their_last_slice() -> None:
    low = images(2)
    filled = pad_batch(low, 4)
    np.testing.assert_array_equal(filled, low[[0, 1, 1, 1]])
    assert pad_batch(low, 2) is low


def test_a_stopped_restorer_restores_nothing_more(tiny_model: Path) -> None:
    restorer = TorchRestorer(tiny_model, "cpu")
    restorer.stop()
    with pytest.raises(RuntimeError, match="terminated"):
        restorer.restore(images(1))


def test_tensorrt_belongs_to_the_other_engine(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="tensorrt belongs to ONNX Runtime"):
        TorchRestorer(tiny_model, "tensorrt")


@pytest.mark.skipif(HAS_GPU, reason="tests a machine without a GPU")
def test_a_missing_gpu_is_an_error_if_it_was_named(tiny_model: Path) -> None:
    assert TorchRestorer(tiny_model, "auto").provider == "PyTorch on cpu"
    with pytest.raises(InputError, match=r"cuda needs an NVIDIA GPU, but PyTorch finds none\. Use auto or cpu"):
        TorchRestorer(tiny_model, "cuda")


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_restored_slices_that_are_not_finite_are_an_error(tiny_model: Path, engine: Engine) -> None:
    restorer = open_model_file(tiny_model, engine, "cpu")
    with pytest.raises(RunError, match=f"{tiny_model}: restored slices are not finite"):
        restorer.restore(np.full_like(images(1), np.nan))
