"""Turn signals into a request to stop, which the training loop reads after each step."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from upfield.common.errors import EXIT_INTERRUPTED
from upfield.common.progress import say

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
AGAIN = "Ctrl-C again ends at once and saves nothing."
BEFORE_TRAINING = "Stopping before training starts."
SHOW_CURSOR = b"\x1b[?25h\n"
END = 0  # This byte ends the thread. No signal has this number.


class StopReason(IntEnum):
    """Why a run stops before its last step. If ranks have different reasons, the largest counts."""

    NONE = 0
    """The run goes on."""
    TIME = 1
    """The time of `run.max_minutes` is up."""
    SIGNAL = 2
    """A signal arrived."""


@dataclass
class StopRequest:
    """Whether this process wants to stop, and whether all ranks have agreed to stop."""

    asked: bool = False
    """Whether a signal asked this process to stop."""
    agreed: StopReason = StopReason.NONE
    """Reason on which all ranks have agreed."""
    ends_at_s: float = math.inf
    """Value of `time.monotonic()` at which the time of the run is up."""
    outlook: str = BEFORE_TRAINING
    """Sentence that says what the first Ctrl-C does at present."""
    cancel: Callable[[], None] = lambda: None
    """Function that ends a wait of this process, for example for a download, once a signal has arrived."""

    @property
    def reason(self) -> StopReason:
        """Reason for which this process wants to stop."""
        if self.asked:
            return StopReason.SIGNAL
        return StopReason.TIME if time.monotonic() >= self.ends_at_s else StopReason.NONE


@contextmanager
def stop_signals(*, interrupt: bool = False) -> Iterator[StopRequest]:
    """Yield a request that SIGTERM and SIGUSR1 set. The signals do not interrupt the code that is running.

    Args:
        interrupt: whether SIGINT (Ctrl-C) sets the request too. The first one prints at once what happens next, and the
            second one ends the process at once.
    """
    request = StopRequest()
    # Python can set handlers in the main thread only. In another thread, such as a Ray worker's, the handlers of the
    # process stay in place.
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _: object) -> None:
        request.asked = True

    listened = (*STOP_SIGNALS, signal.SIGINT) if interrupt else STOP_SIGNALS
    before = {number: signal.signal(number, ask) for number in listened}
    try:
        with _watched(request, interrupt):
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched(request: StopRequest, interrupt: bool) -> Iterator[None]:
    """Let a thread react to signals inside the `with` block.

    Python calls handlers only between two operations of the main thread. A backward pass on a CPU is one operation and
    may take a minute, and a collective call waits for the other ranks. The interpreter's own handler, which is written
    in C, writes the number of each signal into a pipe at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reading, request, interrupt), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.write(writing, bytes([END]))
        thread.join()
        os.close(reading)
        os.close(writing)


def _watch(reading: int, request: StopRequest, interrupt: bool) -> None:
    interrupted = False
    while (number := os.read(reading, 1)[0]) != END:
        if number == signal.SIGINT and interrupt:
            if interrupted:
                _end_at_once()
            interrupted = True
            if os.environ.get("RANK", "0") == "0":
                say(f"{request.outlook} {AGAIN}")
        elif number not in STOP_SIGNALS:
            continue
        request.asked = True
        request.cancel()


def _end_at_once() -> None:
    """End this process without waiting for its main thread, which may wait for another process."""
    if sys.stderr.isatty():
        os.write(2, SHOW_CURSOR)  # A progress bar hides the cursor.
    os._exit(EXIT_INTERRUPTED)
