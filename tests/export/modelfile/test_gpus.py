"""The driver is asked for GPUs, and each process uses its own."""

import ctypes

import pytest

from upfield.export.modelfile import gpus


class Driver:
    """Stands in for libcuda.so.1."""

    def __init__(self, error: int, count: int = 0) -> None:
        self.error, self.count = error, count

    def cuInit(self, _: int) -> int:  # noqa: N802, CUDA names it so
        return self.error

    def cuDeviceGetCount(self, count) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0


@pytest.mark.parametrize(("driver", "expected"), [(Driver(0, 4), 4), (Driver(100), 0)])
def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, driver: Driver, expected: int) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    assert gpus.num_gpus() == expected


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpus.num_gpus() == 0


@pytest.mark.parametrize(("local_rank", "visible", "expected"), [(None, 8, 0), ("3", 8, 3), ("3", 1, 0)])
def test_each_process_has_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, local_rank: str | None, visible: int, expected: int
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(gpus, "num_gpus", lambda: visible)
    assert gpus.own_gpu() == expected
