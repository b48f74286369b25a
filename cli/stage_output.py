"""The output of the demonstration: a bar and one line per stage. The output of the stages is written to a log file."""

import contextlib
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from upfield.common.progress import LastingStream, ProgressBar

UPDATE_INTERVAL_S = 1.0
# Time of a training step: 120 s for the 360 steps of the recipe.
STEP_S = 120 / 360
# Lines of a failed stage that are printed; the log file has all of them.
MOST_LINES = 30


@dataclass(frozen=True)
class Stage:
    """One stage of the demonstration."""

    name: str
    """Its name, one word."""
    promise: str
    """What it will do, in a few words."""
    expected_s: float
    """Its time on two CPU cores without other work, which is its share of the bar."""


STAGES = (
    Stage("cohort", "make phantom heads", 10),
    Stage("shards", "pair the slices of low and high field, and pack them", 4),
    Stage("training", "train a small network", 120),
    Stage("evaluation", "compare it with cubic interpolation on a held-out head", 38),
    Stage("export", "write the network as one file", 2),
    Stage("enhance", "enhance the held-out head's low-field scan with that file", 6),
)
INTRODUCTION = (
    "upfield demo runs every stage on phantoms, which are heads made from one template. It takes about 3 minutes on "
    "two CPU cores without other work, most of it for training, and longer on a busy machine."
)


def stages_for(max_steps: int | None) -> tuple[Stage, ...]:
    """Return the stages, of which the training is expected to take as long as its number of steps says.

    Args:
        max_steps: number of training steps; None is the recipe's.
    """
    if max_steps is None:
        return STAGES
    return tuple(
        replace(stage, expected_s=max_steps * STEP_S) if stage.name == "training" else stage for stage in STAGES
    )


def introduction(out: Path, log: Path) -> str:
    """Return the text that says what will happen, how long it takes, and where the files go."""
    lines = [f"  {number}. {stage.name:<12}{stage.promise}" for number, stage in enumerate(STAGES, start=1)]
    where = f"All files go to {out}, and the output of the stages goes to {log}."
    return "\n".join([textwrap.fill(INTRODUCTION, 80), "", *lines, "", where, ""])


class StageOutput:
    """Runs stages with their output in a log file, and shows a bar and one line per stage on stderr."""

    def __init__(self, stages: Sequence[Stage], log: Path) -> None:
        """Show the bar.

        Args:
            stages: all stages that will run.
            log: file for the output of the stages.
        """
        self._log, self._stages, self._done_s = log, stages, 0.0
        self._total_s = sum(stage.expected_s for stage in stages)
        self._percent = 0
        # While a stage runs, stderr is the log file.
        self._terminal = LastingStream(
            os.fdopen(os.dup(sys.stderr.fileno()), "wb"), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
        self._bar = ProgressBar("demo, %", 100, has_lines=False, stream=self._terminal)
        self.times_s: dict[str, float] = {}
        """Time that each finished stage took."""

    def __enter__(self) -> "StageOutput":
        """Return this output."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar and leave it on the screen."""
        self._bar.close()
        self._terminal.close()

    def run(self, stage: Stage, work: Callable[[], str], share_done: Callable[[], float] | None = None) -> None:
        """Run a stage and print its line. If it fails, print what it printed last and raise its error.

        Args:
            stage: one of the stages.
            work: does the work and returns the outcome in one line.
            share_done: returns how much of the work is done, from 0 to 1; by default the time is the measure.
        """
        number = self._stages.index(stage) + 1
        self._bar.show_figures(f"{number} of {len(self._stages)}: {stage.name}")
        started_s, begin = time.monotonic(), self._log.stat().st_size if self._log.exists() else 0
        finished = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stage, share_done, finished), daemon=True)
        watcher.start()
        try:
            with output_to(self._log):
                print(f"== {stage.name}", flush=True)
                outcome = work()
        except Exception:
            self._bar.print_line(f"{stage.name} failed. {self._log} contains its whole output, which ends with:")
            self._print_end_of_log(begin)
            raise
        finally:
            finished.set()
            watcher.join()
        self.times_s[stage.name] = time.monotonic() - started_s
        self._done_s += stage.expected_s
        self._advance_to(self._done_s)
        self._bar.print_line(f"{stage.name:<12}{self.times_s[stage.name]:4.0f} s  {outcome}")

    def _watch(self, stage: Stage, share_done: Callable[[], float] | None, finished: threading.Event) -> None:
        started_s, expected_s = time.monotonic(), stage.expected_s * self._slowdown
        while not finished.wait(UPDATE_INTERVAL_S):
            share = (time.monotonic() - started_s) / expected_s if share_done is None else share_done()
            # A stage that takes longer than expected must not use up the share of the next one.
            self._advance_to(self._done_s + stage.expected_s * min(share, 0.97))

    @property
    def _slowdown(self) -> float:
        """How many times longer than expected the finished stages took on this machine, at least 1."""
        return max(sum(self.times_s.values()) / self._done_s, 1.0) if self._done_s else 1.0

    def _advance_to(self, done_s: float) -> None:
        percent = round(100 * done_s / self._total_s)
        if percent > self._percent:
            self._bar.advance(percent - self._percent)
            self._percent = percent

    def _print_end_of_log(self, begin: int) -> None:
        with self._log.open("rb") as file:
            file.seek(begin)
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        for line in lines[-MOST_LINES:]:
            self._bar.print_line(line)


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append everything that this process and its children print to `log`."""
    with log.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
        # Child processes inherit the descriptors 1 and 2, whatever sys.stdout and sys.stderr are.
        redirections = (_replaced(1, file), _replaced(2, file))
        with redirections[0], redirections[1], contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield


@contextlib.contextmanager
def _replaced(descriptor: int, file: TextIO) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        file.flush()
        os.dup2(saved, descriptor)
        os.close(saved)
