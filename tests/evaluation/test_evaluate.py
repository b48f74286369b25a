"""Evaluation measures every slice once, the model beside cubic interpolation, the same through PyTorch and ONNX."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from upfield.evaluation.evaluate import main
from upfield.evaluation.measure import Measured, read_slices, slices_csv, statistics
from upfield.model.quality import METRICS


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "report"
    assert main([str(tiny_run), "--shards", str(tiny_shards), "--out", str(out)]) == 0
    return out


def test_metrics_have_the_promised_shape(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    for method in ("cubic", "model"):
        for name in METRICS:
            assert {"mean", "median", "std", "min", "max", "count"} <= metrics[method][name].keys()
            assert metrics[method][name]["count"] == 20


def test_cubic_figures_are_those_of_the_stored_input(evaluated: Path, tiny_shards: Path) -> None:
    from upfield.distributed.reader import read_batch
    from upfield.sharding.shardset import ShardSplit

    split = ShardSplit(tiny_shards, "test")
    batch = read_batch(split, range(split.num_samples))
    error = np.square(batch.low.numpy().astype(np.float64) - batch.high.numpy()).mean(axis=(1, 2, 3))
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert metrics["cubic"]["psnr_slice"]["mean"] == pytest.approx((-10 * np.log10(error)).mean(), rel=1e-4)


def test_onnx_and_pytorch_agree(evaluated: Path, tiny_model: Path, tiny_shards: Path, tmp_path: Path) -> None:
    assert main([str(tiny_model), "--shards", str(tiny_shards), "--out", str(tmp_path), "--batch_size", "3"]) == 0
    through_onnx, through_torch = (
        json.loads((folder / "metrics.json").read_text())["model"]["psnr_slice"]["mean"]
        for folder in (tmp_path, evaluated)
    )
    assert through_onnx == pytest.approx(through_torch, abs=1e-4)


def test_the_report_is_there_and_lists_every_slice(evaluated: Path, tiny_shards: Path) -> None:
    assert "<html" in (evaluated / "report.html").read_text()
    measured = read_slices(evaluated / "slices.csv")
    assert len(set(measured.keys)) == 20


def test_slices_survive_their_file(tmp_path: Path) -> None:
    values = {method: {metric: np.array([1.5, np.inf]) for metric in METRICS} for method in ("cubic", "model")}
    (tmp_path / "slices.csv").write_text(slices_csv(Measured(["a", "b"], values)))
    back = read_slices(tmp_path / "slices.csv")
    assert back.keys == ["a", "b"]
    assert back.values["model"]["psnr_slice"].tolist() == [1.5, np.inf]


def test_infinite_values_are_left_out_and_counted() -> None:
    found = statistics(np.array([1.0, 3.0, np.inf]))
    assert (found["mean"], found["count"], found["infinite"]) == (2.0, 2, 1)
    assert statistics(np.array([np.inf]))["mean"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--shards", "SHARDS", "--out", "o"], "expected a run's best model"),
        (["RUN", "--shards", "nowhere", "--out", "o"], "expected a complete shard set"),
        (["RUN", "--shards", "SHARDS", "--out", "o", "--split", "tset"], "test"),
        (["RUN", "--shards", "SHARDS", "--out", "o", "--device", "cuda"], "expected a GPU"),
        (["RUN", "--shards", "OTHER", "--out", "o"], "expected a model of normalisation"),
    ],
)
def test_bad_input_is_refused(
    tiny_run: Path,
    tiny_shards: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tiny_shards, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"normalisation": "another"}))
    places = {"RUN": tiny_run, "SHARDS": tiny_shards, "OTHER": other}
    code, _, err = run_cli(main, *(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in err
    assert not (tmp_path / "o").exists()
