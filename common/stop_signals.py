"""Ask a run to stop: signals become a request that the loop answers after its step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass
class StopRequest:
    """Whether this process was asked to stop, and whether all agreed to."""

    asked: bool = False
    agreed: bool = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a request that is answered when it suits, the loop's after its step."""
    request = StopRequest()

    def ask(_: int, __: object) -> None:
        request.asked = True

    # In a thread, a Ray worker's for instance, there are no signals: whoever owns the process answers them.
    listened = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in listened}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
