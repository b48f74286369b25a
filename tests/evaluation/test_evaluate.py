"""Evaluation measures every volume once, the model beside cubic interpolation, the same through PyTorch and ONNX."""

import csv
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from upfield.evaluation import measure
from upfield.evaluation.consistency import LowFieldSampling
from upfield.evaluation.evaluate import main
from upfield.evaluation.input_checks import report_folders
from upfield.evaluation.measure import MeasurementSettings, measure_volume
from upfield.evaluation.measurements import CUBIC, MODEL
from upfield.evaluation.metrics import METRICS, SLICE_METRICS
from upfield.evaluation.process_group import measure_split
from upfield.evaluation.reports.csv_files import slices_csv
from upfield.evaluation.reports.metrics_text import metrics_text
from upfield.evaluation.reports.notes import notes
from upfield.evaluation.restorers import RunRestorer
from upfield.evaluation.summary import EvaluationResult, metrics_tree, statistics
from upfield.evaluation.volume_pairs import StackedPair, read_pair
from upfield.sharding.previews.selection import group_volumes
from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_split import ShardSplit

SUBJECTS, VOLUMES, SLICES = 6, 9, 180


class Identity:
    """Gives back the middle slice of its input."""

    context, normalisation = 0, "any"

    def restore(self, low: np.ndarray) -> np.ndarray:
        return low[:, low.shape[1] // 2][:, None].copy()


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the split with several subjects, cohorts and kinds."""
    out = tmp_path_factory.mktemp("evaluation") / "report"
    arguments = [str(tiny_run), "--shards", str(tiny_shards), "--split", "train", "--out", str(out), "--save_volumes"]
    assert main(arguments) == 0
    return out


@pytest.fixture(scope="module")
def through_onnx(tiny_model: Path, tiny_run: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file, with the run that it was made of beside it."""
    out = tmp_path_factory.mktemp("onnx") / "report"
    arguments = [str(tiny_model), "--shards", str(tiny_shards), "--split", "train", "--out", str(out)]
    assert main([*arguments, "--against", str(tiny_run), "--batch_size", "3", "--perturb", "false"]) == 0
    return out


def test_metrics_have_the_promised_shape(evaluated: Path) -> None:
    metrics = read(evaluated)
    for method in (CUBIC, MODEL):
        for name, metric in METRICS.items():
            found = metrics[method][name]
            assert {"mean", "median", "std", "min", "max", "count"} <= found.keys()
            total = SLICES if metric.level == "slice" else VOLUMES
            assert found["count"] + found["infinite"] + found["undefined"] == total
        assert metrics[method]["psnr_slice"]["count"] == SLICES
    assert metrics["definitions"].keys() >= METRICS.keys()


def test_cubic_figures_are_those_of_the_stored_input(evaluated: Path, tiny_shards: Path) -> None:
    from upfield.distributed.samples.reader import read_batch

    split = ShardSplit(tiny_shards, "train")
    batch = read_batch(split, range(split.num_samples))
    error = np.square(batch.low.numpy().astype(np.float64) - batch.high.numpy()).mean(axis=(1, 2, 3))
    psnr = -10 * np.log10(error)
    found = read(evaluated)["cubic"]["psnr_slice"]
    for name, value in {"mean": psnr.mean(), "median": np.median(psnr), "std": psnr.std(), "min": psnr.min()}.items():
        assert found[name] == pytest.approx(value, rel=1e-4)
    listed = {row["key"]: float(row["cubic_psnr_slice"]) for row in rows(evaluated / "slices.csv")}
    assert listed == {split.key(i): pytest.approx(value, rel=1e-4) for i, value in enumerate(psnr.tolist())}


def test_shuffled_slices_are_stacked_again(tiny_shards: Path) -> None:
    split = ShardSplit(tiny_shards, "train")
    numbers = [SampleKey.parse(split.key(sample)).x for sample in range(split.num_samples)]
    assert numbers != sorted(numbers)
    pairs = group_volumes(split)
    assert (len(pairs), len({sample for pair in pairs for sample in pair.samples})) == (VOLUMES, SLICES)
    pair = read_pair(split, pairs[3])
    assert [key.x for key in pair.keys] == list(range(20))
    for x in (0, 7, 19):
        sample = next(s for s in range(split.num_samples) if split.key(s) == str(pair.keys[x]))
        low, high = np.empty((1, 1, 24, 28), np.float16), np.empty((1, 1, 24, 28), np.float16)
        split.read_into([sample], low, high)
        assert np.array_equal(pair.cubic[x], low[0, 0].astype(np.float32))
        assert np.array_equal(pair.high[x], high[0, 0].astype(np.float32))


def test_saved_volumes_are_what_the_model_gives(evaluated: Path, tiny_run: Path, tiny_shards: Path) -> None:
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
        assert float(ours["model_psnr_slice"]) == pytest.approx(float(theirs["model_psnr_slice"]), abs=2e-4)


def test_another_model_is_measured_beside_it(through_onnx: Path) -> None:
    tree = read(through_onnx)
    difference = tree["differences"]["model - against"]["psnr_slice"]
    assert difference["mean"] == pytest.approx(0, abs=1e-4)
    assert difference["subjects"] == SUBJECTS
    assert "The model against the other" in (through_onnx / "report.html").read_text()
    assert {row["subject"] for row in rows(through_onnx / "volumes.csv")} == {
        row["subject"] for row in tree["subjects"]
    }


def test_the_gain_is_over_subjects(evaluated: Path) -> None:
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


def test_cohorts_and_kinds_are_told_apart(evaluated: Path) -> None:
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


def test_doubts_are_told_per_volume_and_the_worst_slices_named(evaluated: Path) -> None:
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


def test_folders_of_models_of_one_name_differ() -> None:
    models = [Path("a/run"), Path("b/run"), Path("run.onnx")]
    assert report_folders(models, Path("o")) == [Path("o/run"), Path("o/run-2"), Path("o/run-3")]
    assert report_folders(models[:1], Path("o")) == [Path("o")]


def test_two_processes_find_the_same(
    evaluated: Path, tiny_run: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Warnings are errors here, not in programs that the tests start.
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
    """Compare trees: numbers to what the order of sums makes of them, all else exactly."""
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


def test_one_volume_is_in_memory_at_a_time(tiny_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    most = {"pairs": 0, "images": 0}

    def read_and_count(split: ShardSplit, pair: Any) -> StackedPair:
        most["pairs"] = max(most["pairs"], sum(isinstance(one(), StackedPair) for one in alive))
        stacked = read_pair(split, pair)
        alive.append(weakref.ref(stacked))
        return stacked

    measured = measure.measure_volume

    def measure_and_count(*arguments: Any) -> Any:
        figures, images = measured(*arguments)
        alive.append(weakref.ref(images))
        most["images"] = max(most["images"], sum(isinstance(one(), type(images)) for one in alive))
        return figures, images

    monkeypatch.setattr(measure, "read_pair", read_and_count)
    monkeypatch.setattr(measure, "measure_volume", measure_and_count)
    split = ShardSplit(tiny_shards, "train")
    how = MeasurementSettings({CUBIC: None, MODEL: Identity()}, 4, perturb=False, device=torch.device("cpu"))
    assert len(measure_split(how, split).volumes) == VOLUMES
    assert most["pairs"] == 0, "a volume is still there when the next one is read"
    # The one shown, the one before, and the one just measured.
    assert most["images"] <= 3


def measure_stack(low: np.ndarray, high: np.ndarray, tiny_shards: Path) -> EvaluationResult:
    """Measure `(20, 24, 28)` volumes through the identity."""
    keys = tuple(SampleKey("a", "b", "real", 0, x) for x in range(20))
    split = ShardSplit(tiny_shards, "test")
    sampling = LowFieldSampling.of(split.manifest, "real", {"kind": "real", "parameters": {}})
    how = MeasurementSettings({CUBIC: None, MODEL: Identity()}, 4, perturb=True, device=torch.device("cpu"))
    figures, _ = measure_volume(how, StackedPair(keys, low[:, None], high), sampling)
    about = {
        "subjects": 1,
        "slices": 20,
        "volumes": {"real": 1},
        "split": "test",
        "restorer": "identity",
        "against": None,
        "models": {},
    }
    return EvaluationResult((figures,), about)


@pytest.fixture(scope="module")
def stack(tiny_shards: Path) -> StackedPair:
    split = ShardSplit(tiny_shards, "test")
    return read_pair(split, group_volumes(split)[0])


def test_perfect_constant_slices_are_counted_and_left_out_and_said(tiny_shards: Path, stack: StackedPair) -> None:
    low, high = stack.cubic.copy(), stack.high.copy()
    low[:3] = high[:3] = 0
    tree = metrics_tree(measure_stack(low, high, tiny_shards))
    found = tree["model"]["psnr_slice"]
    assert (found["infinite"], found["count"]) == (3, 17)
    error = np.square(low[3:].astype(np.float64) - high[3:]).mean(axis=(1, 2))
    assert found["mean"] == pytest.approx((-10 * np.log10(error)).mean(), rel=1e-5)
    assert "model, psnr_slice: 3 slices without any error are left out" in notes(tree)
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree


def test_a_perfect_model_has_no_psnr_but_all_else(tiny_shards: Path, stack: StackedPair) -> None:
    evaluated = measure_stack(stack.high, stack.high, tiny_shards)
    tree = metrics_tree(evaluated)
    assert tree["model"]["psnr_slice"]["mean"] is None
    assert tree["model"]["ssim_slice"]["mean"] == pytest.approx(1, abs=1e-6)
    assert "psnr_slice" not in tree["differences"]["model - cubic"]
    assert "ssim_slice" in metrics_text(tree)
    assert "psnr_slice  " not in metrics_text(tree)
    line = slices_csv(evaluated).splitlines()[1].split(",")
    assert line[4 + len(SLICE_METRICS)] == "inf"


def test_infinite_and_undefined_values_are_left_out_and_counted() -> None:
    found = statistics(np.array([1.0, 3.0, np.inf, np.nan, np.nan]))
    assert (found["mean"], found["count"], found["infinite"], found["undefined"]) == (2.0, 2, 1, 2)
    assert (found["median"], found["std"], found["min"], found["max"]) == (2.0, 1.0, 1.0, 3.0)
    assert statistics(np.array([np.inf]))["mean"] is None


def test_few_subjects_are_said_to_be_few(evaluated: Path) -> None:
    tree = read(evaluated)
    for subjects, words in ((1, "a single subject"), (3, "below 0.25"), (5, "below 0.0625")):
        tree["about"]["subjects"] = subjects
        assert any(words in note for note in notes(tree))
    tree["about"]["subjects"] = 6
    assert not any("single subject" in note or "paired test" in note for note in notes(tree))


def test_figures_of_subjects_that_were_seen_say_so(evaluated: Path) -> None:
    tree = read(evaluated)
    for split, words in (("train", "was trained on these subjects"), ("val", "was chosen on these subjects")):
        tree["about"]["split"] = split
        assert any(words in note for note in notes(tree))


def test_a_log_line_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    from upfield.evaluation.reports.content import TrainingRecord

    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.yaml").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"event": "train", "step": 1}\n{"event": "tr')
    record = TrainingRecord.of(tmp_path, "")
    assert [line["step"] for line in record.log] == [1]


def test_a_model_trained_on_another_set_is_measured_and_said(evaluated: Path) -> None:
    tree = read(evaluated)
    assert tree["about"]["models"]["model"]["trained_on_sha256"] == tree["about"]["data_sha256"]
    assert not any("trained on shards" in note for note in notes(tree))
    tree["about"]["models"]["model"]["trained_on_sha256"] = "0" * 64
    assert any("model: trained on shards of data hash 000000000000" in note for note in notes(tree))


def test_real_and_synthetic_volumes_are_counted_apart(evaluated: Path) -> None:
    tree = read(evaluated)
    assert sum(tree["about"]["volumes"].values()) == VOLUMES
    real = tree["about"]["volumes"]["real"]
    assert metrics_text(tree).startswith(
        f"{SLICES} slices of {real} real and {VOLUMES - real} synthetic volumes, 6 subjects"
    )


def test_what_several_models_are_compared_with_is_measured_once(
    tiny_run: Path,
    tiny_model: Path,
    tiny_shards: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[str] = []
    once = measure.measure_volume

    def measure_and_note(how: MeasurementSettings, *arguments: Any) -> Any:
        measured.extend(how.restorers)
        return once(how, *arguments)

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
    assert "1 volumes are left from an earlier evaluation, such as old.nii.gz" in out
    assert len(list((tmp_path / "volumes").iterdir())) == 1 + sum(read(tmp_path)["about"]["volumes"].values())
