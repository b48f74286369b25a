"""Ray Tune's samplers, seeds and early stopping for a sweep."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Repeater, Searcher

from upfield.tune.configuration import SweepConfig
from upfield.tune.space import Axis, Point, Range, apply_point
from upfield.tune.trial import EPOCH, METRIC
from upfield.tune.unique_search import UniqueOptunaSearch

STATE = "state.pkl"


def repeat_with_seeds(points: Sequence[Point], first: int, seeds: int) -> list[Point]:
    """Return each point once per seed; with one seed, return the points as they are."""
    if seeds == 1:
        return list(points)
    return [point | {"run.seed": first + number} for number in range(seeds) for point in points]


def make_searcher(config: SweepConfig, axes: Mapping[str, Axis]) -> Searcher:
    """Return the Optuna sampler that proposes points, each trained with every seed."""
    space = {key: _distribution(axis) for key, axis in axes.items()}
    searcher = UniqueOptunaSearch(space, metric=METRIC, mode="max", seed=config.seed)
    return Repeater(searcher, repeat=config.seeds) if config.seeds > 1 else searcher


def _distribution(axis: Axis) -> Any:
    # Imported here, because only `search: optuna` needs Optuna.
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(axis, Range):
        return CategoricalDistribution(axis)
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.kind == "loguniform")


def make_scheduler(config: SweepConfig, axes: Mapping[str, Axis]) -> TrialScheduler:
    """Return the scheduler: ASHA, or one that stops no trial."""
    if config.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=EPOCH,
        grace_period=config.asha.grace_epochs,  # pyright: ignore[reportArgumentType]
        reduction_factor=config.asha.reduction_factor,
        # Trials end by themselves; this limit only bounds the rungs.
        max_t=max(max_epochs(config, axes), config.asha.grace_epochs) + 1,  # pyright: ignore[reportArgumentType]
    )


def max_epochs(config: SweepConfig, axes: Mapping[str, Axis]) -> int:
    """Return the largest number of epochs that any trial trains."""
    axis = axes.get("run.epochs", [config.train.run.epochs])
    values = [int(axis.high)] if isinstance(axis, Range) else axis
    return max(apply_point(config.train, {"run.epochs": value}).run.epochs for value in values)


class SchedulerState(Callback):
    """Saves the scheduler's state with that of the sweep.

    Ray does not save it, and without it ASHA would forget the trials that it has compared.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        """Store the scheduler whose state will be saved."""
        self.scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        """Return the scheduler's state for Ray to save; Ray calls this."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / STATE
            self.scheduler.save(str(path))
            return {STATE: path.read_bytes()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the scheduler from a saved state; Ray calls this when a sweep continues."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / STATE
            path.write_bytes(state[STATE])
            self.scheduler.restore(str(path))
