"""`upfield tune`: a Ray Tune sweep."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfield.common.command import Command, execute
from upfield.common.errors import InputError
from upfield.tune.configuration import ResourceConfig, SweepConfig

if TYPE_CHECKING:
    from upfield.tune.space import Axis, Point

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DRIVER_BYTES = 256 * 2**20


def sweep(config: SweepConfig) -> None:
    """Train the points of the space, write the results, point `best` at the best run, and print the table."""
    import ray

    from upfield.common.progress import say
    from upfield.distributed.job import with_absolute_paths
    from upfield.tune.cluster import connect, trials_that_fit, with_gpus
    from upfield.tune.outcomes import collect
    from upfield.tune.results import write_results
    from upfield.tune.saved_config import keep_settings, refuse_other_sweep
    from upfield.tune.space import points_of, read_space

    axes = read_space(config)
    points = points_of(config, axes)
    refuse_incomplete(config, points)
    if config.search == "random" and points is not None and len(points) < config.trials:
        say(f"space: {len(points)} points in place of {config.trials}, for there are no other ones")
    out = config.out.absolute()
    refuse_other_sweep(config)
    set_up_tune()
    connect(config.address, config.package)
    try:
        settled = replace(config, resources=with_gpus(config.resources))
        at_once = trials_that_fit(settled.resources, config.wait_for_nodes_s)
        with alone_in(out):
            keep_settings(config)
            with interruptible() as interrupted:
                grid = make_tuner(settled, with_absolute_paths(config.train), axes, points, at_once).fit()
            if interrupted:
                say(f"{out}: interrupted; the same command goes on from there")
                raise KeyboardInterrupt
            write_results(out, collect(config, [grid[i] for i in range(len(grid))]))
    finally:
        ray.shutdown()


def set_up_tune() -> None:
    """Tell Ray Tune how to behave, before it begins."""
    # Trials report to this folder and are narrated here; Ray's own marks would print the same twice.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # How much a driver that is killed may forget; what it forgets is looked up in the runs.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # It advises in Python on what the next command does by itself.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end Ray Tune in good order, a second one at once; the list gets the signal's number.

    Ray would take the first for its own, and end the process for the second.
    """
    came: list[int] = []

    def end(number: int, _: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        signal.raise_signal(signal.SIGUSR1)  # upon which Tune saves its state

    def end_before_tune_began(number: int, _: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, end) for number in SIGNALS}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, end_before_tune_began)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refuse_incomplete(config: SweepConfig, points: "Sequence[Point] | None") -> None:
    """Refuse what no trial, or one of the points, could be trained with.

    Raises:
        InputError: no complete shard set, a batch that cannot be divided, a missing package.
    """
    import importlib.util

    from upfield.distributed.preconditions import refuse_uneven_batch
    from upfield.distributed.samples.splits import read_set
    from upfield.tune.space import with_point

    read_set(config.train.data)
    for point in points or []:
        refuse_uneven_batch(with_point(config.train, point).data.batch_size, config.resources.workers_per_trial)
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("expected matplotlib to be installed, which the report needs; pip install 'upfield[tune]'")
    if config.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError("search: expected optuna to be installed for --search optuna; pip install 'upfield[tune]'")
    if config.package is not None and (config.package.suffix != ".whl" or not config.package.is_file()):
        raise InputError(f"{config.package}: expected a wheel (pip wheel --no-deps .), found none; check --package")


def alone_in(out: Path) -> Any:
    """Hold a sweep's folder, so that no two drivers write it.

    Raises:
        InputError: another sweep is going on there, or it cannot be written.
    """
    from upfield.common.locking import lock_folder

    lock = lock_folder(out, "--out")
    if lock is None:
        raise InputError(f"{out}: expected no other sweep there, found one that is going on; wait for it, or end it")
    return lock


def make_tuner(
    config: SweepConfig, base: Any, axes: "dict[str, Axis]", points: "list[Point] | None", at_once: int
) -> Any:
    """Give the tuner of a sweep, restored to where an earlier driver left it where there was one.

    Args:
        config: the sweep's, with a number of GPUs.
        base: the training configuration, with absolute paths.
        axes: the space.
        points: those known beforehand.
        at_once: trials that the cluster holds.
    """
    from ray import tune

    from upfield.tune.outcomes import RUNS
    from upfield.tune.state import address_of, set_aside_damaged
    from upfield.tune.trial import Trials, run_trial

    runs = "" if config.storage else str(config.out.absolute() / RUNS)
    trainable = tune.with_parameters(run_trial, trials=Trials(base, runs, config.resources))
    trainable = tune.with_resources(trainable, needs_of(config.resources))
    set_aside_damaged(config)
    if tune.Tuner.can_restore(address_of(config)):
        return tune.Tuner.restore(address_of(config), trainable, resume_unfinished=True, resume_errored=True)
    return new_tuner(config, trainable, base.run.seed, axes, points, at_once)


def needs_of(resources: ResourceConfig) -> Any:
    """Give what Ray Tune reserves for a trial; several workers have their own, and a driver that only waits for them.

    The driver takes no core: however many of them wait, and wherever they lie, none takes the place of a worker.
    """
    from ray.tune import PlacementGroupFactory

    if resources.workers_per_trial > 1:
        return PlacementGroupFactory([{"memory": DRIVER_BYTES}])
    return PlacementGroupFactory(
        [{"CPU": float(resources.cpus_per_worker), "GPU": float(resources.gpus_per_worker or 0)}]
    )


def new_tuner(
    config: SweepConfig,
    trainable: Any,
    first_seed: int,
    axes: "dict[str, Axis]",
    points: "list[Point] | None",
    at_once: int,
) -> Any:
    """Give the tuner of a sweep that begins."""
    from ray import tune

    from upfield.tune.progress_lines import Narrator
    from upfield.tune.search import Rungs, scheduler_of, searcher_of, with_seeds
    from upfield.tune.state import state_of
    from upfield.tune.trial import METRIC, POINT

    storage, name = state_of(config)
    # Ray starts as many trials of one worker as fit, also on nodes that come later; it knows nothing of several.
    limits = [config.max_concurrent_trials, at_once if config.resources.workers_per_trial > 1 else 0]
    scheduler = scheduler_of(config, axes)
    return tune.Tuner(
        trainable,
        param_space=None if points is None else {POINT: tune.grid_search(with_seeds(points, first_seed, config.seeds))},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=config.trials * config.seeds if points is None else 1,
            search_alg=searcher_of(config, axes) if points is None else None,
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
            callbacks=[Narrator(), *([Rungs(scheduler)] if config.scheduler == "asha" else [])],
        ),
    )


# Each trial gets a folder of its own for its run.
COMMAND = Command("tune", SweepConfig, sweep, preset={"train.run.out": Path("set-per-trial")})


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
