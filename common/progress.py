"""Show the progress of long work on stderr: bars on a terminal, plain lines elsewhere."""

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

LINE_INTERVAL_S = 10.0


class LastingStream(io.TextIOWrapper):
    """A standard stream that discards its text once the reader has gone (`upfield enhance ... | head`) or is full.

    The work goes on, because its result is files.
    """

    def write(self, text: str, /) -> int:
        """Write `text`."""
        try:
            return super().write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            super().flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def open_streams() -> None:
    """Make stdout and stderr print every character, in the form `\\u4e2d` if their encoding lacks it.

    File names may hold any bytes. Neither an unusual name nor a reader that has gone may stop the work. Every process
    that prints calls this once.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # The parent has closed the descriptor, which must not become a file's.
            nowhere = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - stays open
            setattr(sys, name, nowhere)
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            lasting = LastingStream(stream.buffer, stream.encoding, "backslashreplace")
            lasting.reconfigure(line_buffering=stream.line_buffering, write_through=stream.write_through)
            setattr(sys, name, lasting)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(message: str) -> None:
    """Print one line on stderr, because stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def describe_duration(seconds: float) -> str:
    """Return a duration in its one or two largest units: `40 s`, `12 min`, `3 h 20 min`, `2 days 5 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} day{'s' if days > 1 else ''}{f' {hours} h' if hours else ''}"


def print_result(line: str) -> None:
    """Print one line on stdout at once, because another program may wait for it."""
    print(line, flush=True)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield `items` and show how many of `total` are done."""
    with ProgressBar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()


class ProgressBar:
    """A progress bar over items, with the latest figures and an optional second bar for the parts of the current item.

    On a terminal, lines that the program prints appear above the bars. Elsewhere, a plain line is printed about every
    LINE_INTERVAL_S seconds and after the last item. Both show how much time is left, at the pace since the bar began.
    """

    def __init__(
        self,
        description: str,
        total: int,
        done: int = 0,
        *,
        visible: bool = True,
        has_lines: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        """Show the bar.

        Args:
            description: name of the items that are counted.
            total: number of items.
            done: number of items that are already done.
            visible: if false, show nothing, because another process shows the bar.
            has_lines: if false, print no plain lines about the items, because the work logs its own.
            stream: where to show the bar; by default stderr. Only there do printed lines appear above the bars.
        """
        self._stream = stream
        self._description, self._done, self._total = description, done, total
        self._part, self._part_done, self._part_total = "", 0, 0
        self._visible, self._has_lines = visible, visible and has_lines
        self._begun_s, self._begun_at = time.monotonic(), done
        self._part_begun_s = self._last_line_s = self._begun_s
        self._bars = _terminal_bars(stream) if visible and (stream or sys.stderr).isatty() else None
        if self._bars is not None:
            self._part_bar = self._bars.add_task("", total=None, visible=False, figures="", left="")
            self._bar = self._bars.add_task(description, total=total, completed=done, figures="", left="")
            self._bars.start()

    def __enter__(self) -> "ProgressBar":
        """Return this bar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Stop updating the bars, and leave them on the screen."""
        if self._bars is not None:
            self._bars.stop()

    def advance(self, count: int = 1, *, left_s: float | None = None) -> None:
        """Count `count` more items as done.

        Args:
            count: number of items.
            left_s: expected rest of the work in seconds, if the caller knows more than the number of items.
        """
        self._done += count
        if left_s is None:
            left_s = _extrapolate(self._begun_s, self._done - self._begun_at, self._total - self._done)
        left = _describe_left(left_s)
        if self._bars is not None:
            self._bars.update(self._bar, completed=self._done, left=left)
        elif self._has_lines and (self._done == self._total or self._is_line_due()):
            self._print(f"{self._description}: {self._done}/{self._total}", left)

    def begin_parts(self, description: str, total: int) -> None:
        """Show a second bar for the `total` parts of the next item, and hide the first if there is only one item."""
        self._part, self._part_done, self._part_total = description, 0, total
        self._part_begun_s = time.monotonic()
        if self._bars is not None:
            self._bars.reset(self._part_bar, total=total, description=description, visible=True, figures="", left="")
            self._bars.update(self._bar, visible=self._total > 1)
        elif not self._has_lines:
            # The lines about the items have no times that could be counted from.
            self._last_line_s = self._part_begun_s

    def advance_parts(self, count: int) -> None:
        """Count `count` more parts of the current item as done."""
        self._part_done += count
        left_s = _extrapolate(self._part_begun_s, self._part_done, self._part_total - self._part_done)
        if self._bars is not None:
            self._bars.update(self._part_bar, completed=self._part_done, left=_describe_left(left_s))
        elif self._visible and self._is_line_due():
            parts = f"{self._part} {self._part_done}/{self._part_total}"
            items = f"; {self._description}: {self._done}/{self._total}" if self._has_lines else ""
            self._print(f"{parts}{items}", _describe_left(left_s))

    def end_parts(self) -> None:
        """Hide the second bar."""
        if self._bars is not None:
            self._bars.update(self._part_bar, visible=False)
            self._bars.update(self._bar, visible=True)

    def show_figures(self, figures: str) -> None:
        """Show the latest figures beside the bar."""
        if self._bars is not None:
            self._bars.update(self._bar, figures=figures)

    def print_line(self, line: str) -> None:
        """Print a line above the bars, or as a plain line."""
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream or sys.stderr, flush=True)

    def _is_line_due(self) -> bool:
        return time.monotonic() - self._last_line_s >= LINE_INTERVAL_S

    def _print(self, line: str, left: str) -> None:
        self._last_line_s = time.monotonic()
        self.print_line(f"{line}, {left}" if left else line)


def _extrapolate(begun_s: float, done: int, left: int) -> float | None:
    """Return the expected time in seconds for what is left, at the pace since `begun_s`; None if nothing is done."""
    return (time.monotonic() - begun_s) * left / done if done > 0 else None


def _describe_left(left_s: float | None) -> str:
    return "" if left_s is None or left_s < 0.5 else f"{describe_duration(left_s)} left"


def _terminal_bars(stream: TextIO | None) -> "Progress":
    # Imported only for a terminal, because importing rich takes longer than a short command runs.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    # rich's own estimate needs two updates within 30 seconds, and a step may take longer.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False),
        expand=True,
        console=Console(file=stream, stderr=stream is None),
        # If stdout is a file or a pipe, rich must not redirect the results to the terminal.
        redirect_stdout=stream is None and sys.stdout.isatty(),
        redirect_stderr=stream is None,
    )
