"""The log that a run writes: metrics.jsonl, Accelerate's trackers, the sample trace, printed lines and a bar."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from torch import Tensor

from upfield.common.progress import ProgressBar, say
from upfield.distributed.agreement import write_on_main_process
from upfield.distributed.checkpoint import TrainingProgress
from upfield.distributed.logs.metrics_log import LOG
from upfield.distributed.logs.pace import Pace, RunLength
from upfield.distributed.logs.printed_lines import expectation, training_line, validation_line

# Format of the training figures beside the progress bar.
BAR_FIGURES = {"loss": "loss {:z.4f}", "slices_per_s": "{:.3g} slices/s"}
PROJECT = "upfield"  # name of the project in wandb and mlflow


class RunLog:
    """Writes the log on the main process. On other processes every method does nothing."""

    def __init__(
        self, accelerator: Accelerator, out: Path, progress: TrainingProgress, length: RunLength, trace: Path | None
    ) -> None:
        """Open the files and remove lines after the step to resume from. Collective: ALL ranks call it.

        Args:
            accelerator: process group and trackers.
            out: folder of the run.
            progress: progress from which the run resumes; at step 0, a new log is started.
            length: work of the whole run.
            trace: file for the keys of the consumed samples, if any.

        Raises:
            RunError: a file cannot be written.
        """
        self._accelerator = accelerator
        self._active = accelerator.is_main_process
        self._files: list[TextIO] = []
        self._metrics: TextIO | None = None
        self._trace: TextIO | None = None
        self._seconds_before = 0.0
        self._progress, self._length = progress, length
        self.pace = Pace(length)
        self._expects = self._active

        def open_all() -> None:
            self._metrics = self._open(out / LOG, progress)
            self._seconds_before = read_seconds(self._metrics)
            self._trace = self._open(trace, progress) if trace else None

        write_on_main_process(f"{out}: the log", open_all)
        # The seconds of a resumed run continue from its last line.
        self._started = time.monotonic() - self._seconds_before
        # The points of TensorBoard's curves after this step are also removed. The tracker's name becomes its folder in
        # the run.
        own = TensorBoardTracker("tensorboard", out, purge_step=progress.step + 1)
        accelerator.log_with = [own if str(kind) == "tensorboard" else kind for kind in accelerator.log_with]
        if accelerator.log_with:
            accelerator.init_trackers(PROJECT)
        # Without a terminal, the log lines show the progress.
        total_steps = length.total_steps
        self._bar = ProgressBar("steps", total_steps, progress.step, visible=self._active, has_lines=False)

    def _open(self, path: Path, progress: TrainingProgress) -> TextIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8", buffering=1)
        self._files.append(file)
        file.seek(0)
        kept = 0
        # Read line by line, because the trace of many subjects would be the largest object in memory.
        for line in iter(file.readline, ""):
            if not _belongs(line, progress):
                break
            kept = file.tell()
        file.truncate(kept)
        return file

    def advance(self) -> None:
        """Advance the progress bar by one step. After the first steps, print how long the run is expected to take."""
        self.pace.add_step()
        step = self._progress.step
        self._bar.advance(left_s=self.pace.job_left_s(step))
        if self._expects and self.pace.is_known and step < self._length.total_steps:
            self._expects = False
            for line in expectation(self._length, self.pace, step, self._accelerator.device.type == "cpu"):
                say(line)

    @contextmanager
    def validation(self, slices: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of a validation inside the `with` block, and measure its time.

        Args:
            slices: number of slices that this process validates.

        Yields:
            Function that takes the number of slices of each batch.
        """
        begun = time.monotonic()
        self._bar.begin_parts("validation slices", slices)
        try:
            yield self._bar.advance_parts
        finally:
            self._bar.end_parts()
        self.pace.add_validation(slices * self._accelerator.num_processes, time.monotonic() - begun)

    def metrics(self, event: str, step: int, epoch: float, values: dict[str, Any]) -> None:
        """Log a training interval or a validation to metrics.jsonl, to the trackers and on stderr.

        Args:
            event: `train`, `validation` or `best`.
            step: number of steps done.
            epoch: number of epochs done.
            values: figures by name.

        Each line also has `seconds`: the time for which the run was trained and validated, without lost work.
        """
        if self._metrics is None:
            return
        seconds = round(time.monotonic() - self._started, 3)
        line = {"event": event, "step": step, "epoch": round(epoch, 4), "seconds": seconds}
        line |= {key: value if _is_json(value) else None for key, value in values.items()}
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        numbers = {f"{event}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        self._accelerator.log(numbers, step=step)
        if event == "train":
            figures = [form.format(values[name]) for name, form in BAR_FIGURES.items() if name in values]
            self._bar.show_figures("  ".join(figures))
            say(training_line(step, self._length.total_steps, values, self.pace.job_left_s(step)))
        else:
            say(validation_line(event, step, values, step == self._progress.best_step))

    def pictures(self, step: int, pictures: Tensor) -> None:
        """Send pictures to the trackers that can show pictures.

        Args:
            step: number of steps done.
            pictures: `(N, 1, H, 3*W)` in [0, 1]: low field, restored and high field side by side.
        """
        if not self._active or not len(pictures):
            return
        images = pictures.permute(0, 2, 3, 1).cpu().numpy()
        for tracker in self._accelerator.trackers:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation/low, restored, high": images}, step=step, **options)  # pyright: ignore[reportAttributeAccessIssue]

    def trace(self, epoch: int, step: int, keys: Sequence[str]) -> None:
        """Append a step to the trace.

        Args:
            epoch: number of the epoch, from 0.
            step: number of the step, from 1.
            keys: keys of the samples that the step consumed, in global order.
        """
        if self._trace is not None:
            self._trace.write(json.dumps({"epoch": epoch, "step": step, "keys": list(keys)}) + "\n")

    def close(self) -> None:
        """Close the bar, the files and the trackers."""
        self._bar.close()
        for file in self._files:
            file.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()


def read_seconds(log: TextIO) -> float:
    """Return the seconds of the last line of a log, which is open at its end, or 0 if it has no lines."""
    log.seek(0)
    last = ""
    for line in iter(log.readline, ""):
        last = line
    return float(json.loads(last).get("seconds", 0)) if last else 0.0


def _is_json(value: object) -> bool:
    """Return whether JSON can represent a value. JSON has no infinity and no NaN."""
    return not isinstance(value, float) or math.isfinite(value)


def _belongs(line: str, progress: TrainingProgress) -> bool:
    """Return whether a log line is complete and its step is not later than the progress."""
    try:
        entry = json.loads(line)
        if entry.get("event") == "validation" and entry["step"] > progress.validated_step:
            return False
        return line.endswith("\n") and 0 < entry["step"] <= progress.step
    except (ValueError, KeyError, TypeError):
        return False
