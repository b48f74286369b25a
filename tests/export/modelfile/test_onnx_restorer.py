"""Restored slices do not depend on the batch or the number of threads, and unusable devices are refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from upfield.common.errors import InputError
from upfield.export.modelfile import onnx_restorer
from upfield.export.modelfile.card import read_card
from upfield.export.modelfile.gpus import num_gpus
from upfield.export.modelfile.onnx_restorer import BoundBatch, OnnxRestorer

HAS_GPU = num_gpus() > 0


def images(count: int, height: int = 24, width: int = 28) -> np.ndarray:
    return np.random.default_rng(count).random((count, 1, height, width), np.float32)


def test_a_model_without_its_second_file_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load_model(tiny_model)
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.data")
    (tmp_path / "weights.data").unlink()
    with pytest.raises(InputError, match="its weight file cannot be read"):
        OnnxRestorer(tmp_path / "model.onnx", "cpu")


@pytest.mark.skipif(HAS_GPU, reason="tests a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_named_device_that_is_missing_is_an_error(tiny_model: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"device: {device} needs an NVIDIA GPU .*Use auto or cpu"):
        OnnxRestorer(tiny_model, device)


@pytest.mark.skipif(HAS_GPU, reason="tests a machine without a GPU")
def test_auto_uses_the_cpu_if_there_is_no_gpu(tiny_model: Path) -> None:
    assert OnnxRestorer(tiny_model).provider == "CPUExecutionProvider"


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose provider ONNX Runtime cannot load, so that the session falls back to the CPU."""
    monkeypatch.setattr(onnx_restorer, "choose_device", lambda _: "cuda")
    monkeypatch.setattr(onnx_restorer, "provider_options", lambda *_: [("CPUExecutionProvider", {})])


@pytest.mark.usefixtures("broken_gpu")
def test_a_named_gpu_that_cannot_be_used_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"cannot use the GPU \(CUDA.* could not be loaded\)\. Run pip install"):
        OnnxRestorer(tiny_model, "cuda")


@pytest.mark.usefixtures("broken_gpu")
def test_auto_says_why_it_does_not_use_the_gpu(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert OnnxRestorer(tiny_model).provider == "CPUExecutionProvider"
    assert "cannot use the GPU" in capsys.readouterr().err


def test_a_gpu_without_cudnn_is_noticed_when_the_file_is_loaded(tiny_model: Path) -> None:
    class WithoutCudnn:
        """A session that opens, but whose convolutions fail."""

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

        def run(self, *_: object) -> None:
            raise RuntimeError("node_20 : 9 : NOT_IMPLEMENTED : cuDNN is unavailable\nsecond line")

    session: Any = WithoutCudnn()
    assert onnx_restorer._problem_on_gpu(session, "cuda", read_card(tiny_model)) == "cuDNN is unavailable"


def test_restored_slices_do_not_depend_on_the_batch_or_the_number_of_threads(tiny_model: Path) -> None:
    low = images(5)
    together = OnnxRestorer(tiny_model, "cpu", threads=2).restore(low)
    alone = OnnxRestorer(tiny_model, "cpu", threads=1)
    np.testing.assert_allclose(
        np.concatenate([alone.restore(batch) for batch in np.split(low, 5)]), together, atol=1e-6
    )


def test_threads_share_one_restorer(tiny_model: Path) -> None:
    restorer = OnnxRestorer(tiny_model, "cpu")
    batches = [images(count, height=16 + count) for count in range(1, 9)]
    expected = [restorer.restore(low) for low in batches]
    with ThreadPoolExecutor(4) as pool:
        restored = list(pool.map(restorer.restore, batches * 3))
    for high, right in zip(restored, expected * 3, strict=True):
        np.testing.assert_allclose(high, right, atol=1e-6)


def test_input_may_have_any_memory_order_and_precision(tiny_model: Path) -> None:
    restorer, low = OnnxRestorer(tiny_model, "cpu"), images(2)
    turned: Any = np.asfortranarray(low.astype(np.float64))
    np.testing.assert_array_equal(restorer.run(turned), restorer.run(low))


def test_bound_batches_restore_the_same_slices(tiny_model: Path) -> None:
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    bound, restorer = BoundBatch(session, "cpu"), OnnxRestorer(tiny_model, "cpu")
    batches = [images(2), images(2)[::-1], images(3), images(2, 16, 19), images(2)]
    restored = [bound.run(np.ascontiguousarray(low), ort.RunOptions()) for low in batches]
    for high, low in zip(restored, batches, strict=True):
        np.testing.assert_allclose(high, restorer.run(low), atol=1e-6)


def test_bound_batches_are_padded_to_one_shape(tiny_model: Path) -> None:
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    bound, low = BoundBatch(session, "cpu", batch_size=4), images(6)
    whole = bound.run(low[:4], ort.RunOptions())
    memory = bound._low
    np.testing.assert_array_equal(bound.run(low[:3], ort.RunOptions()), whole[:3])
    assert bound._low is memory
    assert bound.run(low, ort.RunOptions()).shape == low.shape


def test_threads_share_one_bound_batch(tiny_model: Path) -> None:
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    bound, restorer = BoundBatch(session, "cpu"), OnnxRestorer(tiny_model, "cpu")
    batches = [(images(2) / number).astype(np.float32) for number in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        restored = list(pool.map(lambda low: bound.run(low, ort.RunOptions()), batches))
    for high, low in zip(restored, batches, strict=True):
        np.testing.assert_allclose(high, restorer.run(low), atol=1e-6)


def test_warming_up_changes_nothing(tiny_model: Path) -> None:
    restorer, low = OnnxRestorer(tiny_model, "cpu"), images(2)
    before = restorer.restore(low)
    restorer.warm_up((2, 1, 24, 28))
    np.testing.assert_array_equal(restorer.restore(low), before)


def test_a_stopped_restorer_restores_nothing_more(tiny_model: Path) -> None:
    restorer = OnnxRestorer(tiny_model, "cpu")
    restorer.stop()
    with pytest.raises(Exception, match="terminate"):
        restorer.restore(images(1))
