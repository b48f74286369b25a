"""A file that computes other values than PyTorch, or loses too much in half precision, is not written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from upfield.common.errors import RunError
from upfield.export.modelfile import export_run
from upfield.export.modelfile.parity import MAX_LOSS_DB, draw, half_loss, psnr_slice_db, summarise
from upfield.export.to_onnx import main

PATH = Path("model.onnx")


def spoil_weights(model: onnx.ModelProto) -> None:
    """Reverse the channels of the first convolution, which changes no shape and no size."""
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 2)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.raw_data = numpy_helper.to_array(tensor)[::-1].tobytes()


def spoil_padding(model: onnx.ModelProto) -> None:
    """Pad by repetition instead of reflection, which changes only the last rows and columns of some sizes."""
    made_by = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "Min":  # of places, and of 2 * last - places
            node.input[1] = made_by[made_by[node.input[1]].input[0]].input[0]


def spoil_faintly(model: onnx.ModelProto) -> None:
    """Add ripples that are too faint for the check of the graph itself."""
    model.graph.node[-1].output[0] = "clean"
    for name, value in (("often", 300.0), ("faint", 0.049)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), name))
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["clean", "often"], ["angle"]),
            helper.make_node("Sin", ["angle"], ["sine"]),
            helper.make_node("Sign", ["sine"], ["wave"]),
            helper.make_node("Mul", ["wave", "faint"], ["ripples"]),
            helper.make_node("Add", ["clean", "ripples"], ["high"]),
        ]
    )


@pytest.fixture
def export_spoilt(
    tiny_run: Path, tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    def export(spoil: Callable[[onnx.ModelProto], None], *arguments: str) -> tuple[int, str]:
        right = export_run.build_graph

        def wrong(*arguments, **named) -> onnx.ModelProto:
            model = right(*arguments, **named)
            spoil(model)
            return model

        monkeypatch.setattr(export_run, "build_graph", wrong)
        code, _, err = run_cli(main, tiny_run, "--out", tmp_path / "out" / "model.onnx", *arguments)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        return code, err

    return export


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_padding])
def test_a_wrong_graph_is_not_written(export_spoilt: Callable, spoil: Callable) -> None:
    code, err = export_spoilt(spoil)
    assert code == 1
    assert "differ from PyTorch's by more than 0.001" in err
    assert "nothing was written" in err


def test_half_precision_that_loses_too_much_is_not_written(export_spoilt: Callable) -> None:
    code, err = export_spoilt(spoil_faintly, "--precision", "fp16")
    assert code == 1
    assert "half precision may lose at most 0.05 dB, but its PSNR is" in err
    assert "that of PyTorch in float32" in err


def test_the_loss_is_the_difference_of_both_means() -> None:
    generator = np.random.default_rng(0)
    high = generator.random((3, 1, 20, 20)).astype(np.float32)
    expected, exported = (np.clip(high + error, 0, 1).astype(np.float32) for error in (0.1, 0.1001))
    loss = half_loss(expected, exported, high, PATH)
    assert 0 < loss["psnr_lost_db"] < MAX_LOSS_DB
    assert loss["psnr_lost_db"] == pytest.approx(loss["psnr_slice_float32_db"] - loss["psnr_slice_db"])
    worse = np.clip(high + 0.102, 0, 1).astype(np.float32)
    with pytest.raises(RunError, match=r"but its PSNR is \d+\.\d+ dB, and that of PyTorch in float32 is \d+"):
        half_loss(expected, worse, high, PATH)


def test_nan_is_refused_in_either_check() -> None:
    high = np.full((1, 1, 4, 4), 0.5, dtype=np.float32)
    broken = np.full_like(high, np.nan)
    with pytest.raises(RunError):
        half_loss(high, broken, high, PATH)
    differences = np.zeros(100_000, dtype=np.float32)
    differences[7] = np.nan
    with pytest.raises(RunError):
        summarise(differences, 1e-3, PATH)


def test_a_few_values_beyond_the_limit_are_counted_and_many_are_refused() -> None:
    differences = np.zeros(100_000, dtype=np.float32)
    differences[:50] = 0.01
    statistics = summarise(differences, 1e-3, PATH)
    assert statistics["share_beyond"] == pytest.approx(0.0005)
    assert statistics["max_abs_difference"] == pytest.approx(0.01)
    differences[:200] = 0.01
    with pytest.raises(RunError, match=r"0\.2% of the values"):
        summarise(differences, 1e-3, PATH)


def test_equal_graphs_have_no_psnr_between_them() -> None:
    assert summarise(np.zeros(10, dtype=np.float32), 1e-3, PATH)["psnr_db"] is None


def test_psnr_follows_its_definition() -> None:
    high = np.zeros((2, 1, 3, 3), dtype=np.float32)
    restored = high + np.array([0.1, 0.01], dtype=np.float32).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(psnr_slice_db(restored, high), [20, 40], rtol=1e-5)


def test_the_drawn_slice_has_no_symmetry() -> None:
    image = draw(40, 40)
    assert image.min() >= 0
    assert image.max() <= 1
    for other in (image[::-1], image[:, ::-1], image.T, np.roll(image, 1, 0), np.roll(image, 1, 1)):
        assert np.abs(image - other).mean() > 0.01
