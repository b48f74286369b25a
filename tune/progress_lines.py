"""Plain text lines that show the progress of a sweep's trials."""

from typing import Any

from ray.tune import Callback

from upfield.common.progress import say
from upfield.tune.space import format_value
from upfield.tune.trial import EPOCH, FAILED, FINISHED, METRIC, POINT, REPEAT


class ProgressLines(Callback):
    """Print a line when a trial starts, validates, ends or crashes."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial starts, for the first time or again."""
        again = f", again after {trial.num_failures} failures" if trial.num_failures else ""
        say(f"trial {trial.trial_id}: {describe_point(trial.config)}{again}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print the result of a validation, or the reason for a failure."""
        if FAILED in result:
            say(f"trial {trial.trial_id}: failed: {result[FAILED]}")
        elif FINISHED not in result:
            say(
                f"trial {trial.trial_id}: epoch {result[EPOCH]:.2f}  validation PSNR {result['psnr_slice']:z.2f} dB, "
                f"best {result[METRIC]:z.2f}"
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print whether a trial finished its training or was stopped early."""
        last = trial.last_result or {}
        if FAILED not in last:
            say(f"trial {trial.trial_id}: {'done' if FINISHED in last else 'stopped early'}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial is not retried any more."""
        say(f"trial {trial.trial_id}: not retried after {trial.num_failures} failures")


def describe_point(config: dict[str, Any]) -> str:
    """Format the keys and values of a trial's point as one line."""
    point = {"seed" if key == REPEAT else key: value for key, value in config.get(POINT, config).items()}
    return ", ".join(f"{key} {format_value(value)}" for key, value in point.items())
