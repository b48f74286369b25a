"""The driver of a sweep: check the space, start Ray, train the points and write the results."""

import importlib.util
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray

from upfield.common.drawing import expect_matplotlib
from upfield.common.errors import InputError
from upfield.common.locking import FolderLock, lock_folder
from upfield.common.progress import say
from upfield.common.ray_cluster import explain_ray_errors
from upfield.distributed.configuration import TrainSettings
from upfield.distributed.job import with_absolute_paths
from upfield.distributed.preconditions import refuse_uneven_batch
from upfield.distributed.samples.groups import default_groups
from upfield.distributed.samples.sample_classes import choose_mixture, find_classes
from upfield.sharding.shardset.shard_set import open_set
from upfield.tune.cluster import connect, count_concurrent_trials, resolve_gpus
from upfield.tune.configuration import SweepConfig
from upfield.tune.outcomes import read_outcomes
from upfield.tune.results import write_results
from upfield.tune.saved_config import refuse_other_sweep, save_config
from upfield.tune.space import Point, apply_point, list_points, read_space
from upfield.tune.tuner import configure_tune, open_tuner

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
OUTLOOK = (
    "Stopping the sweep. Finished trials are kept, and the others will continue from their last checkpoints. Ctrl-C "
    "again ends at once."
)


def run_sweep(config: SweepConfig) -> None:
    """Train the points of the space, write the results, point `best` at the best run, and print the table.

    Raises:
        InputError: the sweep cannot start.
        RunError: Ray cannot start, the storage does not respond, or no trial reached a validation.
        KeyboardInterrupt: Ctrl-C or SIGTERM ended the sweep; the same command continues it.
    """
    axes = read_space(config)
    points = list_points(config, axes)
    refuse_untrainable(config, points)
    if config.search == "random" and points is not None and len(points) < config.trials:
        say(f"space: {len(points)} points instead of {config.trials}, because the space has no others")
    out = config.out.absolute()
    refuse_other_sweep(config)
    configure_tune()
    connect(config.address, config.package)
    try:
        resolved = replace(config, resources=resolve_gpus(config.resources))
        num_concurrent = count_concurrent_trials(resolved.resources, config.wait_for_nodes_s)
        with lock_sweep(out):
            save_config(config)
            with interruptible() as signals, explain_ray_errors("the sweep"):
                grid = open_tuner(resolved, base_of_trials(config), axes, points, num_concurrent).fit()
            if signals:
                say(f"{out}: interrupted; finished trials are kept, and the same command continues the sweep")
                raise KeyboardInterrupt
            write_results(out, read_outcomes(config, [grid[i] for i in range(len(grid))]))
    finally:
        ray.shutdown()


def base_of_trials(config: SweepConfig) -> TrainSettings:
    """Return the training configuration in which each point replaces values, with absolute paths."""
    base = with_absolute_paths(config.train)
    slices = base.run.validation_slices or config.validation_slices
    return replace(base, run=replace(base.run, validation_slices=slices))


def refuse_untrainable(config: SweepConfig, points: Sequence[Point] | None) -> None:
    """Check the requirements of all trials, before Ray starts.

    Raises:
        InputError: there is no complete shard set, a batch cannot be divided among the workers, a mix does not fit the
            set, a required package is not installed, or `--package` is not a wheel.
    """
    shards = open_set(config.train.data.shards, config.train.data)
    trials = [apply_point(config.train, point).data for point in points or [{}]]
    for data in trials if points else []:
        refuse_uneven_batch(data.batch_size, config.resources.workers_per_trial)
    if any(data.mix.shares for data in trials):
        split = shards.split("train")
        for data in trials:
            if data.mix.shares:
                choose_mixture(data.mix, find_classes(split, data.mix)[-1], default_groups(data, shards.is_remote))
    expect_matplotlib("tune")
    if config.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError("--search optuna needs optuna. Install it with: pip install 'upfield[tune]'")
    if config.package is not None and (config.package.suffix != ".whl" or not config.package.is_file()):
        raise InputError(f"--package: {config.package} is not a wheel. Build one with: pip wheel --no-deps .")


def lock_sweep(out: Path) -> FolderLock:
    """Lock the folder of a sweep until the returned lock is closed, so that no two drivers write to it.

    Raises:
        InputError: another sweep is running there, or the folder cannot be written.
    """
    lock = lock_folder(out, "--out")
    if lock is None:
        raise InputError(f"{out}: another sweep is running in this folder. Wait until it has ended, or stop it.")
    return lock


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Make Ray Tune save its state and end at the first Ctrl-C or SIGTERM, and end at once at the second.

    Without these handlers, Ray would handle the first signal itself and end the process at the second one.

    Yields:
        A list that receives the number of the first signal.
    """
    received: list[int] = []

    def end(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        say(OUTLOOK)
        signal.raise_signal(signal.SIGUSR1)  # Tune saves its state when it receives SIGUSR1.

    def end_before_tune_starts(number: int, _: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, end) for number in STOP_SIGNALS}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, end_before_tune_starts)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
