"""A line for each thing that happens in a sweep."""

from typing import Any

from ray.tune import Callback

from upfield.common.progress import say
from upfield.tune.space import spell
from upfield.tune.trial import EPOCH, FAILED, FINISHED, METRIC, POINT, REPEAT


class Narrator(Callback):
    """Says what trials do."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial starts, for the first time or again."""
        again = f", again after {trial.num_failures} failures" if trial.num_failures else ""
        say(f"trial {trial.trial_id}: {label(trial.config)}{again}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Say what a validation found."""
        if FAILED in result:
            say(f"trial {trial.trial_id}: failed: {result[FAILED]}")
        elif FINISHED not in result:
            say(
                f"trial {trial.trial_id}: epoch {result[EPOCH]:.2f}  validation PSNR {result['psnr_slice']:.2f} dB, "
                f"best {result[METRIC]:.2f}"
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial has ended, and whether by itself."""
        last = trial.last_result or {}
        if FAILED not in last:
            say(f"trial {trial.trial_id}: {'done' if FINISHED in last else 'stopped early'}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is given up."""
        say(f"trial {trial.trial_id}: given up after {trial.num_failures} failures")


def label(config: dict[str, Any]) -> str:
    """Spell a trial's point."""
    point = {"seed" if key == REPEAT else key: value for key, value in config.get(POINT, config).items()}
    return ", ".join(f"{key} {spell(value)}" for key, value in point.items())
