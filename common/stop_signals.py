"""Turn signals into a request to stop, which the training loop reads after each step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass
class StopRequest:
    """Whether a signal asked this process to stop, and whether all ranks have agreed to stop."""

    asked: bool = False
    agreed: bool = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Yield a request that SIGTERM and SIGUSR1 set. The signals do not interrupt the code that is running."""
    request = StopRequest()

    def ask(_: int, __: object) -> None:
        request.asked = True

    # Python can set handlers in the main thread only. In another thread, such as a Ray worker's, the handlers of the
    # process stay in place.
    listened = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in listened}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
