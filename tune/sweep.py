"""`upfield tune`: a Ray Tune sweep."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfield.sharding.command import Command, execute
from upfield.sharding.errors import InputError
from upfield.tune.configuration import SweepConfig

if TYPE_CHECKING:
    from upfield.tune.space import Axis, Point

STATE, RUNS, SETTINGS = "ray", "trials", "sweep.yaml"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What may differ when a sweep goes on: where and how it runs, not what it searches.
FREE_KEYS = ("out", "address", "package", "max_concurrent_trials", "max_failures", "resources")


def sweep(config: SweepConfig) -> None:
    """Train the points of the space, write the results, point `best` at the best run, and print the table."""
    import os

    import ray

    from upfield.distributed.train import with_absolute_paths
    from upfield.sharding.atomic import write_text
    from upfield.sharding.command import to_yaml
    from upfield.sharding.progress import say
    from upfield.tune.cluster import connect, refuse_impossible, trials_that_fit
    from upfield.tune.results import write_results
    from upfield.tune.space import points_of, read_space
    from upfield.tune.tried import collect

    assert config.out is not None
    axes = read_space(config)
    points = points_of(config, axes)
    refuse_incomplete(config, points)
    out = config.out.absolute()
    refuse_other_sweep(out, config)
    # Trials report to this folder and are narrated here; Ray's own marks would print the same twice.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # How much a driver that is killed may forget; what it forgets is looked up in the runs.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    connect(config.address, config.package)
    try:
        at_once = trials_that_fit(config.resources)
        refuse_impossible(config.resources, at_once)
        out.mkdir(parents=True, exist_ok=True)
        with alone_in(out):
            write_text(out / SETTINGS, to_yaml(config))
            limit = min(at_once, config.max_concurrent_trials or at_once)
            tuner = make_tuner(config, with_absolute_paths(config.train), axes, points, limit)
            with interruptible() as interrupted:
                grid = tuner.fit()
            if interrupted:
                say(f"{out}: interrupted; the same command goes on from there")
                raise KeyboardInterrupt
            write_results(out, collect(config, [grid[i] for i in range(len(grid))]))
    finally:
        ray.shutdown()


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

    listened = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, end) for number in listened}
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

    from upfield.distributed.launch import refuse_uneven_batch
    from upfield.distributed.source import read_set
    from upfield.tune.space import with_point

    if config.train.data.shards is None:
        raise InputError("expected --train.data.shards, found none; give it, or its key in the configuration")
    read_set(config.train.data)
    for point in points or []:
        refuse_uneven_batch(with_point(config.train, point).data.batch_size, config.resources.workers_per_trial)
    if config.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError("search: expected optuna to be installed for --search optuna; pip install 'upfield[optuna]'")
    if config.package is not None and (config.package.suffix != ".whl" or not config.package.is_file()):
        raise InputError(f"{config.package}: expected a wheel (pip wheel --no-deps .), found none; check --package")


def refuse_other_sweep(out: Path, config: SweepConfig) -> None:
    """Refuse a folder that holds another sweep.

    Raises:
        InputError: it was made with another configuration, or holds something else.
    """
    import yaml

    from upfield.sharding.command import to_tree

    settings = out / SETTINGS
    if not settings.is_file():
        if out.exists() and (not out.is_dir() or any(path.name != ".lock" for path in out.iterdir())):
            raise InputError(f"{out}: expected a new folder or an earlier sweep, found something else; choose --out")
        return
    before, now = yaml.safe_load(settings.read_text(encoding="utf-8")), to_tree(config)
    differing = [key for key in now if key not in FREE_KEYS and before.get(key) != now[key]]
    if differing:
        raise InputError(
            f"{out}: expected the configuration that this sweep was begun with ({settings}), found another "
            f"{', '.join(differing)}; go on with the old one, or choose another --out"
        )


def alone_in(out: Path) -> Any:
    """Hold a sweep's folder, so that no two drivers write it.

    Raises:
        InputError: another sweep is going on there.
    """
    from upfield.sharding.locking import try_lock

    lock = (out / ".lock").open("w")
    if not try_lock(lock, out):
        lock.close()
        raise InputError(f"{out}: expected no other sweep there, found one that is going on; wait for it, or end it")
    return lock


def make_tuner(
    config: SweepConfig, base: Any, axes: "dict[str, Axis]", points: "list[Point] | None", at_once: int
) -> Any:
    """Give the tuner of a sweep, restored to where an earlier driver left it where there was one.

    Args:
        config: the sweep's.
        base: the training configuration, with absolute paths.
        axes: the space.
        points: those known beforehand.
        at_once: trials at the same time.
    """
    from ray import tune

    from upfield.tune.narrator import Narrator
    from upfield.tune.search import scheduler_of, searcher_of, with_seeds
    from upfield.tune.trial import METRIC, POINT, Trials, run_trial

    assert config.out is not None
    out, resources = config.out.absolute(), config.resources
    runs = "" if config.storage else str(out / RUNS)
    shared = Trials(base, runs, resources, config.max_failures)
    trainable = tune.with_parameters(run_trial, trials=shared)
    # The driver of several workers only waits for them; without a core of its own it could be placed where they
    # cannot.
    is_driver = resources.workers_per_trial > 1
    needs = {"cpu": 1.0 if is_driver else float(resources.cpus_per_worker)}
    trainable = tune.with_resources(trainable, needs if is_driver else needs | {"gpu": resources.gpus_per_worker})
    storage, name = (config.storage, out.name) if config.storage else (str(out), STATE)
    # An address may end in options: `s3://bucket/folder?region=eu-central-1`.
    address, *options = storage.split("?", 1)
    path = "?".join([f"{address.rstrip('/')}/{name}", *options])
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
    searcher = searcher_of(config, axes) if points is None else None
    samples = config.trials * config.seeds if points is None else 1
    space = None if points is None else {POINT: tune.grid_search(with_seeds(points, base.run.seed, config.seeds))}
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=samples,
            search_alg=searcher,
            scheduler=scheduler_of(config, axes),
            max_concurrent_trials=at_once,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[Narrator()],
        ),
    )


COMMAND = Command("tune", SweepConfig, sweep, required=("out",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
