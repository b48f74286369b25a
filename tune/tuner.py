"""Ray Tune's tuner for a sweep, either new or restored from the saved state."""

import logging
import os
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory

from upfield.distributed.configuration import TrainSettings
from upfield.tune.configuration import ResourceConfig, SweepConfig
from upfield.tune.outcomes import RUNS
from upfield.tune.progress_lines import ProgressLines
from upfield.tune.search import SchedulerState, make_scheduler, make_searcher, repeat_with_seeds
from upfield.tune.space import Axis, Point
from upfield.tune.state import address_of, set_aside_damaged, state_of
from upfield.tune.trial import METRIC, POINT, TrialSetup, run_trial

DRIVER_BYTES = 256 * 2**20


def configure_tune() -> None:
    """Set Ray Tune's environment variables and log level; call this before the tuner starts."""
    # ProgressLines prints the progress of trials. Ray's own output would print it a second time.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # A driver that is killed loses at most this many seconds of its state. The runs keep their own checkpoints.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Tune's warnings show Python code that restores a sweep. The next `upfield tune` does that by itself.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


def open_tuner(
    config: SweepConfig, base: TrainSettings, axes: dict[str, Axis], points: list[Point] | None, num_concurrent: int
) -> tune.Tuner:
    """Return the tuner of a sweep, restored from the state that an earlier driver saved, if any.

    Args:
        config: the sweep; its number of GPUs is set.
        base: the training configuration, with absolute paths.
        axes: the space.
        points: the points of a grid or random search; None if a sampler proposes them.
        num_concurrent: number of trials that the cluster can hold at once.
    """
    runs = "" if config.storage else str(config.out.absolute() / RUNS)
    trainable = tune.with_parameters(run_trial, setup=TrialSetup(base, runs, config.resources))
    trainable = tune.with_resources(trainable, reserve_resources(config.resources))
    set_aside_damaged(config)
    if tune.Tuner.can_restore(address_of(config)):
        return tune.Tuner.restore(address_of(config), trainable, resume_unfinished=True, resume_errored=True)
    return new_tuner(config, trainable, base.run.seed, axes, points, num_concurrent)


def reserve_resources(resources: ResourceConfig) -> PlacementGroupFactory:
    """Return the resources that Ray Tune reserves for a trial.

    A trial of several workers reserves their resources through Ray Train. Its driver only waits for the workers, and
    reserves no CPU; otherwise the drivers of many trials could reserve the CPUs that their workers wait for.
    """
    if resources.workers_per_trial > 1:
        return PlacementGroupFactory([{"memory": DRIVER_BYTES}])
    return PlacementGroupFactory(
        [{"CPU": float(resources.cpus_per_worker), "GPU": float(resources.gpus_per_worker or 0)}]
    )


def new_tuner(
    config: SweepConfig,
    trainable: Any,
    first_seed: int,
    axes: dict[str, Axis],
    points: list[Point] | None,
    num_concurrent: int,
) -> tune.Tuner:
    """Return the tuner of a new sweep; see `open_tuner` for the arguments."""
    storage, name = state_of(config)
    # Ray starts as many one-worker trials as fit, also on nodes that join later. For a trial of several workers, Ray
    # does not know how many it will need, so the number of trials is limited here.
    limits = [config.max_concurrent_trials, num_concurrent if config.resources.workers_per_trial > 1 else 0]
    scheduler = make_scheduler(config, axes)
    grid = None if points is None else tune.grid_search(repeat_with_seeds(points, first_seed, config.seeds))
    num_trials = (config.trials if points is None else len(points)) * config.seeds
    return tune.Tuner(
        trainable,
        param_space=None if grid is None else {POINT: grid},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=config.trials * config.seeds if points is None else 1,
            search_alg=make_searcher(config, axes) if points is None else None,
            scheduler=scheduler,
            max_concurrent_trials=min((limit for limit in limits if limit), default=None),
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[ProgressLines(num_trials), *([SchedulerState(scheduler)] if config.scheduler == "asha" else [])],
        ),
    )
