"""Ask a run to stop: signals become a request that the loop answers after its step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    """Whether this process was asked to stop, and whether all agreed to."""

    asked: bool = False
    agreed: bool = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a request that the loop answers after its step."""
    request = StopRequest()

    def ask(*_: object) -> None:
        request.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
