"""How fast a run is, and how long the rest of it takes."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# The pace is the mean over so many steps.
WINDOW = 100
# A training step computes a forward pass and a backward pass, which takes about twice as long.
FORWARD_SHARE = 1 / 3
# Fewer steps or less time would give a wrong expectation.
LEAST_STEPS, LEAST_S = 3, 2.0


@dataclass(frozen=True)
class RunLength:
    """The work of a whole run."""

    total_steps: int
    """Number of steps."""
    batch_size: int
    """Number of slices per step."""
    validate_every: int
    """Number of steps between validations. There is also one after the last step."""
    validation_slices: int
    """Number of slices of each validation."""
    final_slices: int = 0
    """Number of slices on which the best model is measured at the end, besides the last validation."""
    crop_share: float = 1.0
    """Pixels of a training slice as a share of the pixels of a whole slice."""
    max_minutes: float | None = None
    """Minutes after which the job stops; None for no limit."""
    preset: str = ""
    """Preset of the network's sizes."""

    def slices_after(self, step: int) -> int:
        """Return the number of slices that are still validated after a step."""
        if step >= self.total_steps:
            return 0
        times = self.total_steps // self.validate_every - step // self.validate_every
        times += bool(self.total_steps % self.validate_every)
        return times * self.validation_slices + self.final_slices


class Pace:
    """Measures the steps and validations of a job, and estimates the rest of the run from them."""

    def __init__(self, length: RunLength) -> None:
        """Start the clock."""
        self._length = length
        self._begun_s = time.monotonic()
        self._paused_s = 0.0
        # Times of the ends of steps. So the first step of a job does not count, which takes longer because buffers are
        # allocated.
        self._times: deque[float] = deque(maxlen=WINDOW + 1)
        self._validation_s = 0.0
        self._validated = 0

    def add_step(self) -> None:
        """Count a step that has just been taken."""
        self._times.append(time.monotonic() - self._paused_s)

    def add_validation(self, slices: int, elapsed_s: float) -> None:
        """Count a validation, which took place while the clock was paused."""
        self._validated += slices
        self._validation_s += elapsed_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the `with` block from the steps."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._paused_s += time.monotonic() - begun

    @property
    def is_known(self) -> bool:
        """Whether there were enough steps for an estimate."""
        return len(self._times) > LEAST_STEPS and self._times[-1] - self._times[0] >= LEAST_S

    @property
    def step_s(self) -> float | None:
        """Mean time of a step in seconds; None before the second step."""
        return (self._times[-1] - self._times[0]) / (len(self._times) - 1) if len(self._times) > 1 else None

    @property
    def slices_per_s(self) -> float:
        """Number of slices per second in training; 0 if it is not known."""
        return self._length.batch_size / self.step_s if self.step_s else 0.0

    def validations_left_s(self, step: int) -> float:
        """Return the time in seconds that the validations after a step take.

        Before the first validation, the time of a slice follows from that of a training step.
        """
        if self._validated:
            slice_s = self._validation_s / self._validated
        else:
            slice_s = (self.step_s or 0.0) / self._length.batch_size * FORWARD_SHARE / self._length.crop_share
        return self._length.slices_after(step) * slice_s

    def left_s(self, step: int) -> float | None:
        """Return the expected time in seconds from a step to the end of the run; None if it is not known yet."""
        if self.step_s is None:
            return None
        return (self._length.total_steps - step) * self.step_s + self.validations_left_s(step)

    def job_left_s(self, step: int) -> float | None:
        """Return the expected time in seconds to the end of this job, which `max_minutes` may end before the run."""
        left_s, max_minutes = self.left_s(step), self._length.max_minutes
        if left_s is None or max_minutes is None:
            return left_s
        return min(left_s, max(self._begun_s + 60 * max_minutes - time.monotonic(), 0.0))
