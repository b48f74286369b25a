"""Plain text lines that show the progress of a sweep's trials."""

import math
from typing import Any

from ray.tune import Callback

from upfield.common.progress import describe_duration, say
from upfield.distributed.logs.printed_lines import setting
from upfield.model.baseline import describe_gain
from upfield.tune.trial import FAILED, FINISHED, METRIC, POINT, REPEAT


class ProgressLines(Callback):
    """Print a line when a trial starts, validates, ends or crashes."""

    # Sweeps of earlier versions saved this object without a number.
    _num_trials = 0

    def __init__(self, num_trials: int) -> None:
        """Store the number of trials of the whole sweep."""
        self._num_trials = num_trials

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial starts, for the first time or again."""
        again = f" again after {trial.num_failures} failures" if trial.num_failures else ""
        self._say(trials, trial, f"starts{again}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print the result of a validation, or the reason for a failure."""
        if FAILED in result:
            self._say(trials, trial, f"failed: {result[FAILED]}")
        elif FINISHED not in result:
            gain = describe_gain(result)
            psnr = f"PSNR {result['psnr_slice']:z.2f} dB{f', {gain}' if gain else ''}"
            self._say(trials, trial, f"step {result['step']}, {psnr}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print whether a trial finished its training or was stopped early."""
        last = trial.last_result or {}
        if FAILED in last:
            return
        ended = "done" if FINISHED in last else "stopped early"
        after = f" after {describe_duration(last['time_total_s'])}" if "time_total_s" in last else ""
        self._say(trials, trial, f"{ended}{after}, best PSNR {last.get(METRIC, math.nan):z.2f} dB")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial is not retried any more."""
        self._say(trials, trial, f"not retried after {trial.num_failures} failures")

    def _say(self, trials: list[Any], trial: Any, message: str) -> None:
        number = trials.index(trial) + 1 if trial in trials else len(trials)
        say(f"trial {number} of {max(self._num_trials, number)} ({name_point(trial.config)}): {message}")


def name_point(config: dict[str, Any]) -> str:
    """Return the values of a trial's point as its name: `lr=1e-3,batch_size=4`."""
    point = {"seed" if key == REPEAT else key: value for key, value in config.get(POINT, config).items()}
    leaves = [key.rpartition(".")[2] for key in point]
    names = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(point, leaves, strict=True)]
    return ",".join(f"{name}={setting(value)}" for name, value in zip(names, point.values(), strict=True))
