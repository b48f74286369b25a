import multiprocessing
import os
import time
from functools import partial

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from upfield.common.errors import VolumeError
from upfield.common.tasks import run_tasks
from upfield.imaging import volume
from upfield.imaging.resample import zoom_to

# Worker processes cannot import this file, so tasks are functions of installed modules.
REFUSED = "absent.nii"


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_yields_its_result_once(jobs):
    assert sorted(run_tasks(os.fspath, ["a", "b", "c"], jobs)) == ["a", "b", "c"]


def test_no_tasks_yield_no_results():
    assert list(run_tasks(os.fspath, [], jobs=2)) == []


def test_one_job_runs_in_this_process():
    assert list(run_tasks(lambda task: (task, os.getpid()), [1, 2], jobs=1)) == [(1, os.getpid()), (2, os.getpid())]


def test_a_task_has_one_blas_thread_and_leaves_the_caller_its_own():
    def threads(_=None):
        return {pool["num_threads"] for pool in threadpool_info()}

    before = threads()
    assert list(run_tasks(threads, [0], jobs=1)) == [{1}]
    assert threads() == before


def test_a_volume_of_full_size_is_the_same_for_any_number_of_jobs():
    low = np.random.default_rng(0).random((112, 138, 40), dtype=np.float32)
    enlarge = partial(zoom_to, shape=(179, 221, 200))
    (alone,), (first, second) = run_tasks(enlarge, [low], jobs=1), run_tasks(enlarge, [low, low], jobs=2)
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_array_equal(second, alone)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_task_raises_its_own_error(tmp_path, jobs):
    with pytest.raises(VolumeError, match="there is no such file"):
        list(run_tasks(volume.read_volume, [tmp_path / REFUSED] * 3, jobs))


def test_no_worker_is_still_running_after_a_failure():
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        list(run_tasks(time.sleep, [0.5, -1, 0.5], jobs=2))
    assert multiprocessing.active_children() == []


@pytest.fixture
def own_ray(monkeypatch):
    """Make Ray start on this machine, even if a cluster already runs here."""
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.mark.usefixtures("own_ray")
@pytest.mark.slow
def test_ray_yields_the_same_results_and_errors_and_is_shut_down_afterwards(tmp_path):
    import ray

    results = run_tasks(os.path.basename, ["x/a", "x/b", "x/c"], executor="ray")
    first = next(results)
    with pytest.raises(VolumeError, match="there is no such file"):
        list(run_tasks(volume.read_volume, [tmp_path / REFUSED], executor="ray"))
    assert ray.is_initialized()
    assert sorted([first, *results]) == ["a", "b", "c"]
    assert not ray.is_initialized()
