import multiprocessing
import os
import time

import pytest

from upfield.sharding import volume
from upfield.sharding.errors import VolumeError
from upfield.sharding.tasks import THREAD_VARIABLES, run_tasks

# Functions of installed modules: worker processes cannot import this file.
REFUSED = "absent.nii"


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_gives_its_result_once(jobs):
    assert sorted(run_tasks(os.fspath, ["a", "b", "c"], jobs)) == ["a", "b", "c"]


def test_no_tasks_give_no_results():
    assert list(run_tasks(os.fspath, [], jobs=2)) == []


def test_one_process_needs_no_other():
    assert list(run_tasks(lambda task: (task, os.getpid()), [1, 2], jobs=1)) == [(1, os.getpid()), (2, os.getpid())]


def test_worker_processes_use_one_thread_each_and_this_one_keeps_its_own(monkeypatch):
    monkeypatch.setenv(THREAD_VARIABLES[0], "5")
    monkeypatch.delenv(THREAD_VARIABLES[1], raising=False)
    assert list(run_tasks(os.getenv, [*THREAD_VARIABLES], jobs=2)) == ["1"] * len(THREAD_VARIABLES)
    assert os.environ[THREAD_VARIABLES[0]] == "5"
    assert THREAD_VARIABLES[1] not in os.environ


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_task_raises_its_own_error(tmp_path, jobs):
    with pytest.raises(VolumeError, match="expected a NIfTI file, found none"):
        list(run_tasks(volume.read_volume, [tmp_path / REFUSED] * 3, jobs))


def test_after_a_failure_no_worker_is_left_at_work():
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        list(run_tasks(time.sleep, [0.5, -1, 0.5], jobs=2))
    assert multiprocessing.active_children() == []


def test_ray_gives_the_same_results_and_errors_and_is_left_as_it_was_found(tmp_path):
    import ray

    results = run_tasks(os.path.basename, ["x/a", "x/b", "x/c"], executor="ray")
    first = next(results)
    with pytest.raises(VolumeError, match="expected a NIfTI file, found none"):
        list(run_tasks(volume.read_volume, [tmp_path / REFUSED], executor="ray"))
    assert ray.is_initialized()
    assert sorted([first, *results]) == ["a", "b", "c"]
    assert not ray.is_initialized()
