"""A trial ends as failed if another attempt would fail too; other errors are raised, so that Ray tries again."""

import os
from pathlib import Path
from typing import NoReturn

import pytest
import ray

from upfield.common.errors import DivergedError, FetchError, InputError, RunError
from upfield.distributed.agreement import hold_folder
from upfield.distributed.configuration import DataConfig, TrainSettings
from upfield.tune import trial
from upfield.tune.cluster import resolve_gpus
from upfield.tune.configuration import ResourceConfig
from upfield.tune.trial import FAILED, POINT, TrialSetup, run_trial

GIVEN = {POINT: {"optim.lr": 1e-3}}


def setup(out: Path, gpus: float = 0) -> TrialSetup:
    base = TrainSettings(DataConfig("shards"))
    return TrialSetup(base, str(out), ResourceConfig(gpus_per_worker=gpus))


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fit(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(trial, "fit", fit)
    # The trial changes these variables; monkeypatch restores them after the test.
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, os.environ.get(name, "true"))


@pytest.mark.parametrize("error", [InputError("wrong"), DivergedError("not finite")])
def test_a_permanent_error_is_reported_as_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    failing(monkeypatch, error)
    assert run_trial(GIVEN, setup(tmp_path))[FAILED] == str(error)


@pytest.mark.parametrize("error", [FetchError("no answer"), RunError("disk full"), OSError("torn")])
def test_a_temporary_error_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        run_trial(GIVEN, setup(tmp_path))


def test_a_trial_waits_for_a_locked_run_and_then_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trial, "PATIENCE_S", 1.0)
    run = tmp_path / trial.name_run(GIVEN[POINT])
    lock = hold_folder(run)
    assert lock is not None
    with lock, pytest.raises(RunError, match="an earlier process of this trial still locks the run after 1 s"):
        run_trial(GIVEN, setup(tmp_path))


@pytest.mark.parametrize(("gpus", "seen"), [(0, ""), (1, "0,1")])
def test_gpus_are_hidden_from_trials_that_reserved_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: float, seen: str
) -> None:
    failing(monkeypatch, InputError("here"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    run_trial(GIVEN, setup(tmp_path, gpus))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize(
    ("requested", "in_cluster", "expected"),
    [(None, 8.0, 1.0), (None, 0.0, 0.0), (0, 8.0, 0), (2, 8.0, 2), (0.5, 1.0, 0.5)],
)
def test_a_worker_has_a_gpu_by_default_if_the_cluster_has_any(
    monkeypatch: pytest.MonkeyPatch, requested: float | None, in_cluster: float, expected: float
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": in_cluster})
    assert resolve_gpus(ResourceConfig(gpus_per_worker=requested)).gpus_per_worker == expected
