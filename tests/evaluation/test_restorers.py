"""A model file is measured in the engine that the user chose."""

from pathlib import Path

import numpy as np

from upfield.evaluation.restorers import ModelFileRestorer


def test_both_engines_restore_the_same_slices_and_are_named(tiny_model: Path) -> None:
    low = np.random.default_rng(0).random((2, 1, 24, 28), np.float32)
    onnx, torch = (ModelFileRestorer(tiny_model, "cpu", engine) for engine in ("onnx", "torch"))
    np.testing.assert_allclose(torch.restore(low), onnx.restore(low), atol=1e-5)
    runtimes = [restorer.origin.runtime for restorer in (onnx, torch)]
    assert runtimes == ["ONNX Runtime, CPUExecutionProvider", "PyTorch on cpu, model file"]
