"""Infinite and undefined values are counted, named and left out of means."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from identity_model import IdentityModel

from upfield.evaluation.consistency import LowFieldSampling
from upfield.evaluation.measure import MeasurementSettings, measure_volume
from upfield.evaluation.measurements import CUBIC, MODEL
from upfield.evaluation.metrics import SLICE_METRICS
from upfield.evaluation.reports.csv_files import slices_csv
from upfield.evaluation.reports.metrics_text import metrics_text
from upfield.evaluation.reports.notes import notes
from upfield.evaluation.stacked_pairs import StackedPair, read_pair
from upfield.evaluation.summary import EvaluationResult, metrics_tree, statistics
from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import group_volumes


def measure_stack(low: np.ndarray, high: np.ndarray, tiny_shards: Path) -> EvaluationResult:
    """Measure the identity on volumes `(20, 24, 28)`."""
    keys = tuple(SampleKey("a", "b", "real", 0, x) for x in range(20))
    split = ShardSplit(tiny_shards, "test")
    sampling = LowFieldSampling.of(split.manifest, "real", {"kind": "real", "parameters": {}})
    settings = MeasurementSettings({CUBIC: None, MODEL: IdentityModel()}, 4, perturb=True, device=torch.device("cpu"))
    figures, _ = measure_volume(settings, StackedPair(keys, low[:, None], high), sampling)
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


def test_perfect_slices_are_left_out_counted_and_noted(tiny_shards: Path, stack: StackedPair) -> None:
    low, high = stack.cubic.copy(), stack.high.copy()
    low[:3] = high[:3] = 0
    tree = metrics_tree(measure_stack(low, high, tiny_shards))
    found = tree["model"]["psnr_slice"]
    assert (found["infinite"], found["count"]) == (3, 17)
    error = np.square(low[3:].astype(np.float64) - high[3:]).mean(axis=(1, 2))
    assert found["mean"] == pytest.approx((-10 * np.log10(error)).mean(), rel=1e-5)
    assert "model, psnr_slice: 3 slices without any error are left out" in notes(tree)
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree


def test_a_perfect_model_has_every_metric_except_psnr(tiny_shards: Path, stack: StackedPair) -> None:
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
