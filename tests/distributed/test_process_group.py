"""A launcher's variables decide how many processes a job has; incomplete or impossible ones are refused."""

import os

import pytest

from upfield.common.errors import InputError, RunError
from upfield.distributed.configuration import RunConfig
from upfield.distributed.process_group import expected_world_size, make_accelerator, read_world_size

COMPLETE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("change", "size"),
    [({}, 2), ({"WORLD_SIZE": "1", "RANK": "0"}, 1), ({"MASTER_PORT": None}, 2)],
    ids=["of two nodes", "of one process", "with the usual port"],
)
def test_the_variables_of_launchers_are_read(change: dict[str, str | None], size: int) -> None:
    assert read_world_size({name: value for name, value in (COMPLETE | change).items() if value is not None}) == size


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected at least 1 .* found two"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected at least 1"),
        ({"RANK": None}, "WORLD_SIZE=2, but RANK is not set. Launchers such as torchrun"),
        ({"RANK": "2"}, "RANK: expected a number from 0 to 1 .* found 2"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK: expected a number from 0 to 1"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
    ],
)
def test_incomplete_or_impossible_variables_are_refused(change: dict[str, str | None], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_world_size({name: value for name, value in (COMPLETE | change).items() if value is not None})


def test_a_rank_without_a_world_size_is_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*COMPLETE, "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "3")
    assert expected_world_size() == 1
    assert "LOCAL_RANK" not in os.environ
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RunError, match="started only one"):
        expected_world_size()


def test_accelerate_takes_no_settings_from_variables(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    accelerator = make_accelerator(RunConfig(out=tmp_path, precision="no", trackers=[]), 1)
    try:
        assert accelerator.gradient_accumulation_steps == 1
        assert accelerator.state.dynamo_plugin is not None
        assert accelerator.state.dynamo_plugin.backend == "NO"
        assert accelerator.mixed_precision == "no"
    finally:
        accelerator.state._reset_state(reset_partial_state=True)
