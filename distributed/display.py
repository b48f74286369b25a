"""How a run looks on a terminal: a bar with what matters now; elsewhere nothing, since the log's lines say it."""

import sys
from typing import Any

SHOWN = {
    "loss": "loss {:.4f}",
    "slices_per_s": "{:.1f} slices/s",
    "data_wait": "data wait {:.0%}",
    "memory_gb": "{:.1f} GB",
}


class Bar:
    """Steps done of all, with the latest figures; lines printed meanwhile appear above it."""

    def __init__(self, active: bool, done: int, total: int) -> None:
        """Show the bar, if active and if stderr is a terminal."""
        self._progress: Any = None
        if active and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._task = self._progress.add_task("", completed=done, total=total)
            self._progress.start()

    def advance(self, step: int) -> None:
        """Say that `step` steps are done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def figures(self, values: dict[str, Any]) -> None:
        """Show the latest of them."""
        if self._progress is not None:
            text = "  ".join(form.format(values[name]) for name, form in SHOWN.items() if name in values)
            self._progress.update(self._task, description=text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
