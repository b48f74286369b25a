"""How Ray Tune is to search: samplers, repetitions and early stopping."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback

from upfield.tune.configuration import SweepConfig
from upfield.tune.space import Axis, Point, Range, with_point
from upfield.tune.trial import EPOCH, METRIC

STATE = "state.pkl"


def with_seeds(points: Sequence[Point], first: int, seeds: int) -> list[Point]:
    """Give each point once per seed, and as it is where there is one."""
    if seeds == 1:
        return list(points)
    return [point | {"run.seed": first + number} for number in range(seeds) for point in points]


def searcher_of(config: SweepConfig, axes: Mapping[str, Axis]) -> Any:
    """Give the sampler that proposes points."""
    from ray.tune.search import Repeater

    from upfield.tune.unique_search import DistinctOptunaSearch

    space = {key: _distribution(axis) for key, axis in axes.items()}
    searcher = DistinctOptunaSearch(space, metric=METRIC, mode="max", seed=config.seed)
    return Repeater(searcher, repeat=config.seeds) if config.seeds > 1 else searcher


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(axis, Range):
        return CategoricalDistribution(axis)
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.kind == "loguniform")


def scheduler_of(config: SweepConfig, axes: Mapping[str, Axis]) -> Any:
    """Give what stops trials early, if anything is to."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if config.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=EPOCH,
        grace_period=config.asha.grace_epochs,  # pyright: ignore[reportArgumentType]
        reduction_factor=config.asha.reduction_factor,
        # Trials end by themselves; this only bounds the rungs.
        max_t=max(most_epochs(config, axes), config.asha.grace_epochs) + 1,  # pyright: ignore[reportArgumentType]
    )


def most_epochs(config: SweepConfig, axes: Mapping[str, Axis]) -> int:
    """Give the most epochs that any trial trains."""
    axis = axes.get("run.epochs", [config.train.run.epochs])
    values = [int(axis.high)] if isinstance(axis, Range) else axis
    return max(with_point(config.train, {"run.epochs": value}).run.epochs for value in values)


class Rungs(Callback):
    """Keeps the state of the scheduler with the sweep's, which Ray leaves out: ASHA would forget whom it compared."""

    def __init__(self, scheduler: Any) -> None:
        """Take the scheduler."""
        self.scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        """Give what the scheduler knows."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / STATE
            self.scheduler.save(str(path))
            return {STATE: path.read_bytes()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Let the scheduler know what it knew."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / STATE
            path.write_bytes(state[STATE])
            self.scheduler.restore(str(path))
