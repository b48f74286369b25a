"""What a run writes down as it goes: metrics.jsonl, Accelerate's trackers, the trace of samples, lines and a bar."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from torch import Tensor

from upfield.distributed.display import Bar
from upfield.sharding.atomic import write_text
from upfield.sharding.progress import say

PROJECT = "upfield"  # What wandb and mlflow file the run under.


class Record:
    """The run's log. Only the main process writes; on the others every call does nothing."""

    def __init__(
        self, accelerator: Accelerator, out: Path, resumed_step: int, total_steps: int, trace: Path | None
    ) -> None:
        """Open the files, and cut off what was logged after the step that the run resumes from.

        Args:
            accelerator: knows which process this is, and the trackers.
            out: folder of the run.
            resumed_step: steps done; 0 starts a new log.
            total_steps: of the whole run.
            trace: file for the samples consumed, if any.
        """
        self._accelerator = accelerator
        self._active = accelerator.is_main_process
        self._files: list[TextIO] = []
        self._started = time.monotonic()
        if self._active:
            self._metrics = self._open(out / "metrics.jsonl", resumed_step)
            self._trace = self._open(trace, resumed_step) if trace else None
        # TensorBoard takes the name for a folder of the run's.
        accelerator.init_trackers("tensorboard" if self._uses_only_tensorboard() else PROJECT)
        self._bar = Bar(self._active, resumed_step, total_steps)

    def _uses_only_tensorboard(self) -> bool:
        return [str(kind) for kind in self._accelerator.log_with] == ["tensorboard"]

    def _open(self, path: Path, resumed_step: int) -> TextIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() and resumed_step else []
        write_text(path, "".join(line for line in lines if _step_of(line) <= resumed_step))
        file = path.open("a", encoding="utf-8", buffering=1)
        self._files.append(file)
        return file

    def advance(self, step: int) -> None:
        """Say that `step` steps are done."""
        self._bar.advance(step)

    def metrics(self, event: str, step: int, epoch: float, values: dict[str, Any]) -> None:
        """Log a training step or a validation: a JSON line, the trackers, and a line for people."""
        if not self._active:
            return
        seconds = round(time.monotonic() - self._started, 3)
        line = {"event": event, "step": step, "epoch": round(epoch, 4), "seconds": seconds} | values
        self._metrics.write(json.dumps(line) + "\n")
        numbers = {f"{event}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        self._accelerator.log(numbers, step=step)
        self._bar.figures(values)
        # The spread over slices is in the file; a line holds what is looked at.
        plain = {key: value for key, value in values.items() if not key.endswith(("_median", "_std", "_min", "_max"))}
        shown = "  ".join(f"{key} {value:.4g}" for key, value in plain.items() if isinstance(value, int | float))
        say(f"{event:<10} step {step}  epoch {epoch:.2f}  {shown}")

    def pictures(self, step: int, pictures: Tensor) -> None:
        """Give pictures to the trackers that show them.

        Args:
            step: when they were made.
            pictures: `(N, 1, H, 3*W)` in [0, 1]: low field, restored and high field each.
        """
        if not self._active or not len(pictures):
            return
        images = pictures.permute(0, 2, 3, 1).cpu().numpy()
        for tracker in self._accelerator.trackers:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation/low, restored, high": images}, step=step, **options)  # pyright: ignore[reportAttributeAccessIssue]

    def trace(self, epoch: int, step: int, keys: Sequence[str]) -> None:
        """Append the keys that a step consumed, in global order."""
        if self._active and self._trace:
            self._trace.write(json.dumps({"epoch": epoch, "step": step, "keys": list(keys)}) + "\n")

    def close(self) -> None:
        """Close the files, the trackers and the bar."""
        self._bar.close()
        for file in self._files:
            file.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()


def _step_of(line: str) -> float:
    """Give the step of a log line; a line that a crash cut short belongs to no step worth keeping."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
