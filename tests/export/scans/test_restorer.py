"""Model files that cannot be used are refused in their own words, and those that can are safe to share."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from upfield.common.cores import num_cores
from upfield.common.errors import InputError
from upfield.export.scans.restorer import VERSION, BoundBatch, OnnxRestorer, is_model_file, read_card

HAS_GPU = Path("/proc/driver/nvidia/version").exists()


def images(count: int, height: int = 24, width: int = 28) -> np.ndarray:
    return np.random.default_rng(count).random((count, 1, height, width), np.float32)


@pytest.fixture
def altered(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that copies the model with other metadata; a key of None is left out."""

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
        ({"format": None}, "found one without its metadata"),
        ({"format": json.dumps("another")}, "expected format upfield-model 1, found another 1"),
        ({"format_version": json.dumps(VERSION + 1)}, "found 2, which a newer upfield wrote; update this one"),
        ({"format_version": json.dumps(VERSION - 1)}, "expected format version 1, found 0; export the run again"),
        ({"context": "no JSON"}, "expected JSON in its metadata"),
        ({"context": None, "step": None}, "expected context, step in its metadata, found none"),
    ],
)
def test_metadata_that_cannot_be_used_are_refused(altered: Callable, values: dict, message: str) -> None:
    path = altered(**values)
    with pytest.raises(InputError, match=message) as refused:
        OnnxRestorer(path, "cpu")
    assert str(path) in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an ONNX file, found none"):
        read_card(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="expected an ONNX file, found a folder"):
        read_card(tmp_path)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tiny_model: Path, tmp_path: Path, kept: float) -> None:
    content = tiny_model.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match="cut short, damaged or of another kind"):
        OnnxRestorer(path, "cpu")
    assert not is_model_file(path)


@pytest.mark.parametrize("content", [b"", b"no model", bytes(1000), b"\x1f\x8b" + bytes(100)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected an ONNX file, found one that is cut short, damaged or of another"):
        OnnxRestorer(path, "cpu")


def test_a_foreign_onnx_file_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [value], [result])
    onnx.save_model(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(InputError, match="found one without its metadata"):
        OnnxRestorer(tmp_path / "other.onnx", "cpu")
    assert not is_model_file(tmp_path / "other.onnx")


def test_lost_weights_of_a_parted_model_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load_model(tiny_model)
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.data")
    (tmp_path / "weights.data").unlink()
    with pytest.raises(InputError, match="expected an ONNX file that ONNX Runtime can load"):
        OnnxRestorer(tmp_path / "model.onnx", "cpu")


@pytest.mark.skipif(HAS_GPU, reason="says what happens without a GPU")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_asked_for_by_name_that_is_not_there_is_an_error(tiny_model: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"for --device {device}, found none; use auto or cpu"):
        OnnxRestorer(tiny_model, device)


@pytest.mark.skipif(HAS_GPU, reason="says what happens without a GPU")
def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_so(tiny_model: Path) -> None:
    assert OnnxRestorer(tiny_model).provider == "CPUExecutionProvider"


def test_slices_are_restored_alike_alone_and_in_batches_and_by_any_number_of_cores(tiny_model: Path) -> None:
    low = images(5)
    together = OnnxRestorer(tiny_model, "cpu", threads=2).restore(low)
    alone = OnnxRestorer(tiny_model, "cpu", threads=1)
    np.testing.assert_allclose(np.concatenate([alone.restore(one) for one in np.split(low, 5)]), together, atol=1e-6)


def test_threads_share_one_restorer(tiny_model: Path) -> None:
    restorer = OnnxRestorer(tiny_model, "cpu")
    batches = [images(count, height=16 + count) for count in range(1, 9)]
    expected = [restorer.restore(low) for low in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(restorer.restore, batches * 3))
    for one, right in zip(found, expected * 3, strict=True):
        np.testing.assert_allclose(one, right, atol=1e-6)


def test_input_of_any_order_in_memory_and_precision_is_taken(tiny_model: Path) -> None:
    restorer, low = OnnxRestorer(tiny_model, "cpu"), images(2)
    turned: Any = np.asfortranarray(low.astype(np.float64))
    np.testing.assert_array_equal(restorer.run(turned), restorer.run(low))


def test_batches_bound_to_memory_of_their_own_are_restored_alike(tiny_model: Path) -> None:
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    bound, restorer = BoundBatch(session, "cpu"), OnnxRestorer(tiny_model, "cpu")
    batches = [images(2), images(2)[::-1], images(3), images(2, 16, 19), images(2)]
    found = [bound.run(np.ascontiguousarray(low), ort.RunOptions()) for low in batches]
    for one, low in zip(found, batches, strict=True):
        np.testing.assert_allclose(one, restorer.run(low), atol=1e-6)


def test_smaller_batches_are_filled_up_where_values_depend_on_their_shape(tiny_model: Path) -> None:
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
        found = list(pool.map(lambda low: bound.run(low, ort.RunOptions()), batches))
    for one, low in zip(found, batches, strict=True):
        np.testing.assert_allclose(one, restorer.run(low), atol=1e-6)


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


def test_cores_are_those_that_this_process_may_use() -> None:
    assert num_cores() >= 1
