"""Samples are requested before their batch is yielded, and only a limited number in advance."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from upfield.distributed.samples import look_ahead
from upfield.distributed.samples.look_ahead import request_ahead


class Split:
    """Records the requested samples, of 4 bytes each."""

    low_shape = high_shape = (1, 1, 1)

    def __init__(self) -> None:
        self.requests: list[list[int]] = []

    def request(self, samples: NDArray[np.int64]) -> None:
        self.requests.append(samples.tolist())


def outstanding_numbers(batches: Sequence[NDArray[np.int64]], num_batches: int) -> tuple[Split, list[int]]:
    """Return a split, and how many samples were requested and not yielded after each batch."""
    split, yielded, numbers = Split(), 0, []
    for expected, batch in zip(batches, request_ahead(split, batches, num_batches), strict=True):  # type: ignore[arg-type]
        assert batch is expected
        yielded += len(batch)
        numbers.append(sum(map(len, split.requests)) - yielded)
    assert numbers[-1] == 0
    return split, numbers


def test_small_batches_are_requested_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_ahead, "AHEAD_BYTES", 4 * 60)
    batches = np.arange(1000).reshape(200, 5)
    split, numbers = outstanding_numbers(list(batches), num_batches=1)
    assert max(numbers) <= 60
    assert min(numbers[:-15]) >= 25
    assert max(map(len, split.requests[1:])) == 30


@pytest.mark.parametrize("num_batches", [1, 4])
def test_large_batches_are_requested_one_before_they_are_needed(
    num_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_ahead, "AHEAD_BYTES", 4)
    batches = np.arange(1000).reshape(10, 100)
    _, numbers = outstanding_numbers(list(batches), num_batches)
    assert max(numbers) <= 100 * (1 + num_batches)
    assert min(numbers[: -1 - num_batches]) >= 100


def test_a_sample_is_requested_once_for_each_batch_that_reads_it() -> None:
    split, batches = Split(), [np.array([3, 1, 3]), np.array([1, 2])]
    assert len(list(request_ahead(split, batches, 1))) == 2  # type: ignore[arg-type]
    assert split.requests == [[1, 3, 1, 2]]
