"""Join ranges of bytes that lie close together into requests, and cut the answers apart again."""

from collections.abc import Sequence
from dataclasses import dataclass

# Bytes between two ranges that are downloaded and thrown away, because another request would cost more time.
GAP_BYTES = 64 * 2**10
# A failed request is repeated as a whole, and all requests in flight are held in memory.
REQUEST_BYTES = 4 * 2**20

ByteRange = tuple[int, int]
"""Positions of the first byte of a range and of the first byte after it."""


@dataclass
class RangeRequest:
    """One request for several ranges of an object."""

    start: int
    """Position of the first byte."""
    end: int
    """Position after the last byte."""
    members: list[int]
    """Numbers of the ranges, in the order in which the caller named them."""

    @property
    def num_bytes(self) -> int:
        """Number of bytes of the answer."""
        return self.end - self.start


def join_ranges(ranges: Sequence[ByteRange]) -> list[RangeRequest]:
    """Join ranges that overlap or have at most `GAP_BYTES` between them into requests of up to `REQUEST_BYTES`.

    A single range that is longer than that is one request.

    Examples:
        >>> [(request.start, request.end, request.members) for request in join_ranges([(90, 99), (10, 20), (0, 10)])]
        [(0, 99, [2, 1, 0])]
    """
    requests: list[RangeRequest] = []
    for number in sorted(range(len(ranges)), key=ranges.__getitem__):
        start, end = ranges[number]
        assert 0 <= start < end
        last = requests[-1] if requests else None
        if last and start - last.end <= GAP_BYTES and max(end, last.end) - last.start <= REQUEST_BYTES:
            last.end = max(end, last.end)
            last.members.append(number)
        else:
            requests.append(RangeRequest(start, end, [number]))
    return requests


def cut_ranges(ranges: Sequence[ByteRange], requests: Sequence[RangeRequest], answers: Sequence[bytes]) -> list[bytes]:
    """Return the bytes of each range, from the answers to the requests of `join_ranges`."""
    parts = [b""] * len(ranges)
    for request, answer in zip(requests, answers, strict=True):
        view = memoryview(answer)
        for number in request.members:
            start, end = ranges[number]
            whole = end - start == len(answer)
            parts[number] = answer if whole else bytes(view[start - request.start : end - request.start])
    return parts
