"""`upfield evaluate` measures each volume once, and PyTorch, ONNX Runtime and two processes give the same values."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from upfield.distributed.samples.reader import read_batch
from upfield.evaluation import measure
from upfield.evaluation.evaluate import main
from upfield.evaluation.measure import MeasurementSettings
from upfield.evaluation.measurements import CUBIC, MODEL
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.restorers import RunRestorer
from upfield.evaluation.stacked_pairs import read_pair
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import group_volumes

SUBJECTS, VOLUMES, SLICES = 6, 9, 180


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def through_onnx(tiny_model: Path, tiny_run: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report folder of the model file, measured against the run that it was exported from."""
    out = tmp_path_factory.mktemp("onnx") / "report"
    arguments = [str(tiny_model), "--shards", str(tiny_shards), "--split", "train", "--out", str(out)]
    assert main([*arguments, "--against", str(tiny_run), "--batch_size", "3", "--perturb", "false"]) == 0
    return out


def test_metrics_json_has_the_documented_structure(evaluated: Path) -> None:
    metrics = read(evaluated)
    for method in (CUBIC, MODEL):
        for name, metric in METRICS.items():
            found = metrics[method][name]
            assert {"mean", "median", "std", "min", "max", "count"} <= found.keys()
            total = SLICES if metric.level == "slice" else VOLUMES
            assert found["count"] + found["infinite"] + found["undefined"] == total
        assert metrics[method]["psnr_slice"]["count"] == SLICES
    assert metrics["definitions"].keys() >= METRICS.keys()


def test_cubic_metrics_agree_with_the_stored_input(evaluated: Path, tiny_shards: Path) -> None:
    split = ShardSplit(tiny_shards, "train")
    batch = read_batch(split, range(split.num_samples))
    error = np.square(batch.low.numpy().astype(np.float64) - batch.high.numpy()).mean(axis=(1, 2, 3))
    psnr = -10 * np.log10(error)
    found = read(evaluated)["cubic"]["psnr_slice"]
    for name, value in {"mean": psnr.mean(), "median": np.median(psnr), "std": psnr.std(), "min": psnr.min()}.items():
        assert found[name] == pytest.approx(value, rel=1e-4)
    listed = {row["key"]: float(row["cubic_psnr_slice"]) for row in rows(evaluated / "slices.csv")}
    assert listed == {split.key(i): pytest.approx(value, rel=1e-4) for i, value in enumerate(psnr.tolist())}


def test_saved_volumes_equal_the_model_output(evaluated: Path, tiny_run: Path, tiny_shards: Path) -> None:
    split = ShardSplit(tiny_shards, "train")
    restorer = RunRestorer(tiny_run, "cpu")
    assert len(list((evaluated / "volumes").iterdir())) == VOLUMES
    pair = read_pair(split, group_volumes(split)[0])
    image = nib.load(evaluated / "volumes" / f"{pair.name}.nii.gz")
    assert isinstance(image, nib.Nifti1Image)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.get_fdata() == pytest.approx(restorer.restore(pair.low)[:, 0], abs=1e-5)


def test_onnx_and_pytorch_agree(evaluated: Path, through_onnx: Path) -> None:
    torch_tree, onnx_tree = read(evaluated), read(through_onnx)
    for name in METRICS:
        for statistic in ("mean", "median", "min", "max"):
            expected = torch_tree["model"][name][statistic]
            found = [onnx_tree[method][name][statistic] for method in ("model", "against")]
            assert found == [expected] * 2 if expected is None else found == pytest.approx([expected] * 2, abs=1e-4)
    pairs = zip(rows(evaluated / "slices.csv"), rows(through_onnx / "slices.csv"), strict=True)
    for ours, theirs in pairs:
        # Rounding decides a tie of two experts, which moves a single slice by more than all means.
        assert float(ours["model_psnr_slice"]) == pytest.approx(float(theirs["model_psnr_slice"]), abs=2e-3)


def test_a_model_is_compared_with_another_model(through_onnx: Path) -> None:
    tree = read(through_onnx)
    difference = tree["differences"]["model - against"]["psnr_slice"]
    assert difference["mean"] == pytest.approx(0, abs=1e-4)
    assert difference["subjects"] == SUBJECTS
    assert "Comparison with the other model" in (through_onnx / "report.html").read_text()
    assert {row["subject"] for row in rows(through_onnx / "volumes.csv")} == {
        row["subject"] for row in tree["subjects"]
    }


def test_the_gain_is_averaged_over_subjects(evaluated: Path) -> None:
    tree = read(evaluated)
    gains: dict[tuple[str, str], list[float]] = {}
    for row in rows(evaluated / "slices.csv"):
        gain = float(row["model_psnr_slice"]) - float(row["cubic_psnr_slice"])
        gains.setdefault((row["cohort"], row["subject"]), []).append(gain)
    found = tree["differences"]["model - cubic"]["psnr_slice"]
    assert found["mean"] == pytest.approx(np.mean([np.mean(values) for values in gains.values()]), abs=1e-4)
    assert (found["subjects"], len(tree["subjects"])) == (SUBJECTS, SUBJECTS)
    assert found["low"] <= found["mean"] <= found["high"]
    assert found["p"] >= 2 / 2**SUBJECTS


def test_cohorts_and_kinds_have_separate_statistics(evaluated: Path) -> None:
    groups = read(evaluated)["groups"]
    assert groups.keys() == {"real, real", "real, synthetic", "ixi, synthetic", "all, synthetic"}
    difference = groups["real, real"]["differences"]["model - cubic"]["psnr_slice"]
    assert difference["subjects"] == len(
        {row["subject"] for row in rows(evaluated / "slices.csv") if row["kind"] == "real"}
    )
    counts = {name: group["model"]["psnr_slice"]["count"] for name, group in groups.items()}
    assert counts["real, real"] + counts["all, synthetic"] == SLICES
    values = [float(row["model_psnr_slice"]) for row in rows(evaluated / "slices.csv") if row["kind"] == "synthetic"]
    assert groups["all, synthetic"]["model"]["psnr_slice"]["mean"] == pytest.approx(np.mean(values), rel=1e-5)


def test_trust_is_listed_per_volume_and_the_worst_slices_are_named(evaluated: Path) -> None:
    tree = read(evaluated)
    for method in (CUBIC, MODEL):
        trust = tree["trust"][method]
        assert len(trust["volumes"]) == VOLUMES
        assert trust["inconsistency"]["mean"] == pytest.approx(
            np.mean([volume["inconsistency"] for volume in trust["volumes"].values()])
        )
    assert tree["trust"]["cubic"]["disagreement"] is None
    assert tree["trust"]["model"]["disagreement"]["min"] > 0
    column = {row["key"]: float(row["model_disagreement"]) for row in rows(evaluated / "slices.csv")}
    worst = [row["key"] for row in tree["worst_slices"]["disagreement"]]
    assert worst == sorted(column, key=lambda key: -column[key])[:10]


def test_without_perturbations_there_is_no_disagreement(through_onnx: Path) -> None:
    tree = read(through_onnx)
    assert tree["trust"]["model"]["disagreement"] is None
    assert tree["worst_slices"].keys() == {"inconsistency"}


def test_several_models_are_compared(
    tiny_run: Path, tiny_model: Path, tiny_shards: Path, tmp_path: Path, run_cli: Callable
) -> None:
    arguments = ["--shards", tiny_shards, "--out", tmp_path, "--perturb", "false"]
    code, out, err = run_cli(main, tiny_run, tiny_model, *arguments)
    assert code == 0, err
    tree = json.loads((tmp_path / "compare.json").read_text())
    names = [CUBIC, str(tiny_run), str(tiny_model)]
    assert set(tree["methods"]) == set(names)
    for model, folder in ((tiny_run, tmp_path / "run"), (tiny_model, tmp_path / "model")):
        own = read(folder)
        assert tree["methods"][str(model)] == own["model"]
        assert tree["methods"][CUBIC] == own["cubic"]
        found = next(d for d in tree["differences"] if (d["method"], d["other"]) == (str(model), CUBIC))
        assert found["metrics"] == own["differences"]["model - cubic"]
    assert (tree["differences"][-1]["method"], tree["differences"][-1]["other"]) == (names[2], names[1])
    assert tree["differences"][-1]["metrics"]["psnr_slice"]["mean"] == pytest.approx(0, abs=1e-4)
    assert [row["model"] for row in rows(tmp_path / "compare.csv")] == names
    page = (tmp_path / "compare.html").read_text()
    assert 'href="run/report.html"' in page
    assert 'href="model/report.html"' in page
    assert f"<td>{tiny_model} - {tiny_run}</td>" in page
    assert "compare.html" in out


def test_two_processes_compute_the_same_metrics(
    evaluated: Path, tiny_run: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "report"
    arguments = [str(tiny_run), "--shards", str(tiny_shards), "--split", "train", "--out", str(out)]
    assert main([*arguments, "--processes", "2"]) == 0
    expected, found = read(evaluated), read(out)
    assert found["about"]["slices"] == SLICES
    for tree in (expected, found):
        del tree["about"]
    assert_close(found, expected)
    assert [row["key"] for row in rows(out / "slices.csv")] == [row["key"] for row in rows(evaluated / "slices.csv")]


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Compare trees: floats with a tolerance, because rounding depends on the order of sums, and all else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_close(found[number], value, f"{where}/{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), where
    else:
        assert found == expected, where


def test_a_model_that_several_models_are_compared_with_is_measured_once(
    tiny_run: Path,
    tiny_model: Path,
    tiny_shards: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[str] = []
    once = measure.measure_volume

    def measure_and_note(settings: MeasurementSettings, *arguments: Any) -> Any:
        measured.extend(settings.restorers)
        return once(settings, *arguments)

    monkeypatch.setattr(measure, "measure_volume", measure_and_note)
    other = tmp_path / "other.onnx"
    shutil.copy(tiny_model, other)
    arguments = ["--shards", tiny_shards, "--out", tmp_path / "o", "--perturb", "false", "--against", tiny_model]
    code, _, err = run_cli(main, tiny_run, other, *arguments)
    assert code == 0, err
    volumes = read(tmp_path / "o" / "run")["about"]["volumes"].values()
    assert sorted(measured) == sorted([CUBIC, str(tiny_run), str(other), str(tiny_model)] * sum(volumes))
    assert read(tmp_path / "o" / "run")["against"] == read(tmp_path / "o" / "other")["model"]
    assert str(tiny_model) in json.loads((tmp_path / "o" / "compare.json").read_text())["methods"]


def test_volumes_of_an_earlier_evaluation_are_named(
    tiny_run: Path, tiny_shards: Path, tmp_path: Path, run_cli: Callable
) -> None:
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "old.nii.gz").write_bytes(b"")
    arguments = ["--shards", tiny_shards, "--out", tmp_path, "--perturb", "false", "--save_volumes", "true"]
    code, out, _ = run_cli(main, tiny_run, *arguments)
    assert code == 0
    assert "old.nii.gz is left from an earlier evaluation. Delete what you no longer need." in out
    assert len(list((tmp_path / "volumes").iterdir())) == 1 + sum(read(tmp_path)["about"]["volumes"].values())


def test_a_volume_that_cannot_be_measured_is_named_and_the_others_are_reported(
    tiny_run: Path, tiny_model: Path, tiny_shards: Path, tmp_path: Path, run_cli: Callable, monkeypatch: Any
) -> None:
    split = ShardSplit(tiny_shards, "train")
    # The report shows the first volume.
    bad = next(pair for pair in group_volumes(split) if pair.first.kind == "real")
    name = str(bad.first).rpartition("-")[0]
    low = read_pair(split, bad).low
    original = RunRestorer.restore

    def fail(self: RunRestorer, batch: np.ndarray) -> np.ndarray:
        restored = original(self, batch)
        return restored * np.nan if np.array_equal(batch, low[: len(batch)]) else restored

    monkeypatch.setattr(RunRestorer, "restore", fail)
    models = (tiny_run, tiny_model, "--shards", tiny_shards, "--split", "train", "--perturb", "false")
    code, out, err = run_cli(main, *models, "--out", tmp_path, "--save_volumes")
    assert code == 1
    assert f"error: 1 volume could not be measured: {name}." in err
    assert "Traceback" not in err
    assert f"1 volume could not be measured: {name}" in out
    with_failure, without = read(tmp_path / "run"), read(tmp_path / "model")
    assert with_failure[MODEL]["psnr_slice"]["count"] == SLICES - 20
    assert with_failure[CUBIC]["psnr_slice"]["count"] == SLICES - 20
    assert without[CUBIC]["psnr_slice"]["count"] == SLICES
    (failure,) = with_failure["about"]["failed_volumes"]
    assert (failure["volume"], failure["method"]) == (name, MODEL)
    assert "not finite" in failure["reason"]
    assert without["about"]["failed_volumes"] == []
    assert sum(with_failure["about"]["volumes"].values()) == VOLUMES - 1
    comparison = json.loads((tmp_path / "compare.json").read_text())
    assert comparison["methods"][CUBIC]["psnr_slice"]["count"] == SLICES - 20
    assert len(comparison["about"]["failed_volumes"]) == 1
    saved = [len(list((tmp_path / model / "volumes").iterdir())) for model in ("run", "model")]
    assert saved == [VOLUMES - 1, VOLUMES]
