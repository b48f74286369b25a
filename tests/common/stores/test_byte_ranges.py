"""Parts of an object are read by ranges of bytes, from HTTP and S3 servers that may fail."""

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from faulty import FaultyServer

from upfield.common.stores import byte_ranges
from upfield.common.stores.byte_ranges import join_ranges
from upfield.common.stores.store import Store
from upfield.common.stores.store_errors import RangesIgnoredError
from upfield.common.stores.transfer import TransferCancelledError

NAME = "train/000000.tar"
RANGES = [(70_000, 90_000), (0, 512), (512, 1024), (600, 700), (50_000, 50_001)]


@dataclass
class Served:
    store: Store
    server: FaultyServer
    data: bytes


@pytest.fixture(params=["http_store", "s3"])
def served(request: pytest.FixtureRequest, tiny_shards: Path) -> Served:
    server = request.getfixturevalue(request.param)
    address = "s3://sets/tiny" if request.param == "s3" else server.url
    return Served(Store(address, timeout_s=5), server, (tiny_shards / NAME).read_bytes())


def test_ranges_are_returned_in_the_order_asked_for_and_neighbours_share_a_request(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_ranges, "GAP_BYTES", 1000)
    assert served.store.fetch_ranges(NAME, RANGES) == [served.data[start:end] for start, end in RANGES]
    assert served.server.asked[NAME] == 3
    assert served.server.sent_bytes[NAME] == 1024 + 1 + 20_000
    assert served.store.fetch_ranges(NAME, []) == []


def test_a_store_that_ignores_ranges_is_refused(served: Served) -> None:
    served.server.ignores_ranges = True
    said = rf"^{served.store.name}/{NAME}: the store does not answer requests for a range of bytes; .* whole files"
    with pytest.raises(RangesIgnoredError, match=said):
        served.store.fetch_ranges(NAME, RANGES)


def test_ranges_beyond_the_end_are_an_error_that_may_be_temporary(served: Served) -> None:
    size = len(served.data)
    with pytest.raises(ValueError, match=rf"expected 110 bytes from position {size - 10}, found 10"):
        served.store.fetch_ranges(NAME, [(size - 10, size + 100)])


@pytest.mark.parametrize("fault", ["error", "truncation"])
def test_a_fault_is_raised_and_a_second_attempt_succeeds(served: Served, fault: str) -> None:
    served.server.fail_always(NAME, fault)
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each client has its own error classes
        served.store.fetch_ranges(NAME, RANGES[:1])
    assert not isinstance(raised.value, RangesIgnoredError)
    served.server.fail(NAME, [])
    assert served.store.fetch_ranges(NAME, RANGES[:1]) == [served.data[slice(*RANGES[0])]]


def test_a_stalled_range_ends_after_the_timeout_or_when_the_caller_cancels(served: Served) -> None:
    served.server.fail_always(NAME, "stall")
    stopped = threading.Event()
    threading.Thread(target=lambda: (served.server.stalled.wait(), stopped.set())).start()
    with pytest.raises(TransferCancelledError):
        served.store.fetch_ranges(NAME, RANGES, stopped)
    with pytest.raises(TimeoutError, match=r"no data for 0\.2 s"):
        Store(served.store.address, timeout_s=0.2).fetch_ranges(NAME, RANGES)


def test_long_ranges_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ranges, "GAP_BYTES", 10)
    monkeypatch.setattr(byte_ranges, "REQUEST_BYTES", 100)
    requests = join_ranges([(0, 90), (95, 100), (101, 130), (140, 400), (411, 420)])
    assert [(request.start, request.end) for request in requests] == [(0, 100), (101, 130), (140, 400), (411, 420)]
