from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from upfield.common import cores
from upfield.common.cores import busy_cores, most_threads, num_cores, num_threads

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A function that makes this a machine of four cores of which `used` are busy, one number for each measurement."""

    def describe(*used: int, quota: str = "max 100000") -> None:
        left = list(used)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(cores, "_allowed_cores", lambda: [0, 1, 2, 3])
        monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
        cores.QUOTA.write_text(quota)

        def cpu_percent(_: float, percpu: bool) -> list[float]:
            busy = left.pop(0) if len(left) > 1 else left[0]
            return [100.0] * busy + [3.0] * (4 - busy)

        monkeypatch.setattr(psutil, "cpu_percent", cpu_percent)
        monkeypatch.setattr(cores.time, "process_time", lambda: 0.0)

    return describe


@pytest.mark.parametrize(("used", "threads"), [(0, 4), (1, 3), (3, 1), (4, 1)])
def test_a_process_leaves_busy_cores_to_others(machine: Machine, used: int, threads: int) -> None:
    machine(used)
    assert (num_threads(), most_threads()) == (threads, 4)


def test_the_processes_of_a_job_share_the_free_cores(machine: Machine) -> None:
    machine(2)
    assert num_threads(processes=2) == 1
    assert most_threads(processes=2) == 2


def test_a_short_burst_of_work_is_not_taken_for_a_busy_machine(machine: Machine) -> None:
    machine(4, 3, 0)
    assert num_threads() == 4


def test_the_users_own_number_of_threads_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert num_threads() == num_threads(processes=2) == 7


def test_a_containers_quota_limits_threads_and_load_elsewhere_does_not(machine: Machine) -> None:
    machine(2, quota="150000 100000")
    assert (num_threads(), most_threads()) == (2, 2)


def test_own_work_is_not_the_work_of_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(1)
    clock = iter([0.0, 0.1] * 5)
    monkeypatch.setattr(cores.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(cores.time, "perf_counter", iter([0.0, 0.1] * 5).__next__)
    assert busy_cores() == pytest.approx(0.09)


def test_at_least_one_core_is_counted() -> None:
    assert num_cores() >= 1
