"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LINE_INTERVAL_S = 10.0


def say(message: str) -> None:
    """Print one line about what is going on, on stderr: stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Pass `items` on and show how many of `total` are done."""
    if sys.stderr.isatty():
        yield from _bar(items, description, total)
    else:
        yield from _lines(items, description, total)


def _bar(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=description, total=total, console=Console(stderr=True))


def _lines(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == total or now - last >= LINE_INTERVAL_S:
            last = now
            say(f"{description}: {done}/{total}")
