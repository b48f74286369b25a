"""Progress over scans and over the slices of the one at hand: two bars on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from upfield.common.progress import LINE_INTERVAL_S, say


class ScanProgress:
    """Shows how far the work is; a context manager, as bars must be taken down whatever happens."""

    def __init__(self, num_scans: int) -> None:
        """Start at none of `num_scans`."""
        self._num_scans, self._scan = num_scans, 0
        self._name, self._slice, self._num_slices = "", 0, 0
        self._said_s = time.monotonic()
        self._bars: Any = _bars() if sys.stderr.isatty() else None
        if self._bars is not None:
            self._slices_bar = self._bars.add_task("slices", total=None, visible=False)
            self._scans_bar = self._bars.add_task("scans", total=num_scans, visible=num_scans > 1)

    def __enter__(self) -> "ScanProgress":
        """Show the bars."""
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bars down."""
        if self._bars is not None:
            self._bars.stop()

    def begin(self, name: str, num_slices: int) -> None:
        """Tell that a scan's slices are next."""
        self._name, self._slice, self._num_slices = name, 0, num_slices
        if self._bars is not None:
            self._bars.reset(self._slices_bar, total=num_slices, description=name, visible=True)

    def advance(self, num_slices: int) -> None:
        """Tell that so many more slices of it are restored."""
        self._slice += num_slices
        if self._bars is not None:
            self._bars.advance(self._slices_bar, num_slices)
        elif time.monotonic() - self._said_s >= LINE_INTERVAL_S:
            self._line(f"{self._name}: slice {self._slice}/{self._num_slices}; scans: {self._scan}/{self._num_scans}")

    def end(self) -> None:
        """Tell that a scan is done with, one way or the other."""
        self._scan += 1
        if self._bars is not None:
            self._bars.advance(self._scans_bar)
        elif self._scan == self._num_scans or time.monotonic() - self._said_s >= LINE_INTERVAL_S:
            self._line(f"scans: {self._scan}/{self._num_scans}")

    def _line(self, message: str) -> None:
        self._said_s = time.monotonic()
        say(message)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        # Results go where the caller sends them, and past the bars only where both share a terminal.
        redirect_stdout=sys.stdout.isatty(),
    )
