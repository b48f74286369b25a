"""A space is checked as a whole before anything runs, and its points depend on the configuration alone."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upfield.distributed.configuration import DataConfig, TrainSettings
from upfield.tune.configuration import SweepConfig
from upfield.tune.search import max_epochs, repeat_with_seeds
from upfield.tune.space import Range, apply_point, grid_points, name_run, random_points, read_space
from upfield.tune.sweep import COMMAND, main

REPORT = Path(__file__).parents[2] / "tune" / "spaces" / "report.yaml"
BASE = TrainSettings(DataConfig("shards"))


def config(space: dict[str, Any], **others: Any) -> SweepConfig:
    return SweepConfig(Path("sweep"), BASE, space, **others)


def test_the_grid_holds_every_combination_once() -> None:
    axes = read_space(config({"optim.lr": [1e-4, 2e-4], "data.batch_size": [2, 4, 8]}))
    points = grid_points(axes)
    assert len({name_run(point) for point in points}) == len(points) == 6


def test_values_are_parsed_as_training_parses_them_each_once() -> None:
    axes = read_space(config({"optim.lr": ["1e-4", 1e-4, 5e-4], "model.preset": ["tiny"]}))
    assert axes == {"optim.lr": [1e-4, 5e-4], "model.preset": ["tiny"]}


def test_mixes_and_groups_are_searched_like_other_keys() -> None:
    mixes = [{"kind": {"real": 0.5, "synthetic": 0.5}}, {"kind": {"real": 1}, "per": "epoch"}, {}]
    axes = read_space(config({"data.mix": mixes, "data.groups": [1, 2]}))
    points = grid_points(axes)
    assert len({name_run(point) for point in points}) == 6
    assert [apply_point(BASE, point).data.mix.shares for point in points[::2]] == [
        {"real": 0.5, "synthetic": 0.5},
        {"real": 1.0},
        None,
    ]


def test_random_points_are_as_many_as_requested_or_as_the_space_holds() -> None:
    axes = read_space(config({"data.batch_size": [2, 4, 8], "run.epochs": [1, 2]}))
    for count in (3, 6, 50):
        points = random_points(axes, count, seed=0)
        assert len({name_run(point) for point in points}) == len(points) == min(count, 6)


def test_random_points_lie_in_their_ranges_and_depend_on_the_seed_alone() -> None:
    space = {
        "optim.lr": {"loguniform": ["1e-5", 1e-2]},
        "run.epochs": {"int": [3, 5]},
        "optim.ema_decay": {"uniform": [0.9, 0.99]},
        "data.batch_size": [2, 4],
    }
    axes = read_space(config(space, search="random"))
    points = random_points(axes, 300, seed=3)
    assert points == random_points(axes, 300, seed=3)
    assert points[:50] == random_points(axes, 50, seed=3)
    assert points != random_points(axes, 300, seed=4)
    assert {point["run.epochs"] for point in points} == {3, 4, 5}
    assert {point["data.batch_size"] for point in points} == {2, 4}
    rates = [point["optim.lr"] for point in points]
    assert 1e-5 <= min(rates) < 3e-5
    assert 3e-3 < max(rates) <= 1e-2
    assert abs(sum(map(math.log10, rates)) / len(rates) + 3.5) < 0.2
    assert all(0.9 <= point["optim.ema_decay"] <= 0.99 for point in points)


def test_points_change_only_the_keys_they_name() -> None:
    changed = apply_point(BASE, {"optim.lr": "1e-3", "model.preset": "tiny"})
    assert (changed.optim.lr, changed.model.preset) == (1e-3, "tiny")
    assert changed.data == BASE.data
    assert changed.optim.betas == BASE.optim.betas


def test_every_point_is_trained_with_every_seed() -> None:
    points = repeat_with_seeds([{"optim.lr": 1e-3}, {"optim.lr": 1e-4}], first=5, seeds=3)
    assert len({name_run(point) for point in points}) == 6
    assert {point["run.seed"] for point in points} == {5, 6, 7}
    assert repeat_with_seeds([{"optim.lr": 1e-3}], first=5, seeds=1) == [{"optim.lr": 1e-3}]


def test_names_distinguish_similar_points_and_fit_a_folder() -> None:
    near = [{"optim.lr": 1e-4}, {"optim.lr": 1.00001e-4}]
    assert len({name_run(point) for point in near}) == 2
    long = name_run({f"model.key{number}": "x/y " * 9 for number in range(20)})
    assert len(long) < 200
    assert "/" not in long


def test_the_file_of_the_reports_space_has_its_values() -> None:
    from upfield.common.command import parse

    config = parse(COMMAND, ["--config", str(REPORT), "--train.data.shards", "shards", "--out", "sweep"])
    axes = read_space(config)
    assert axes == {
        "optim.lr": [1e-4, 2e-4, 5e-4],
        "data.batch_size": [2, 4, 8],
        "run.epochs": Range("int", 40, 80),
    }
    assert max_epochs(config, axes) == 80
    assert config.train.model.preset == "report"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("space: {}", "space: no training key is named"),
        ("space: {optim.rate: [1]}", "unknown key optim.rate"),
        ("space: {optim.lr.x: [1]}", "optim.lr.x is not a training key"),
        ("space: {1: [1]}", "expected a dotted training key"),
        ("space: {data.shards: [a, b]}", "data.shards must be the same for all points"),
        ("space: {optim.lr: [-1]}", "expected a positive rate"),
        ("space: {optim.lr: []}", "the list of values is empty"),
        ("space: {optim.lr: 1}", "expected a list of values or one of {uniform: [a, b]}"),
        ("space: {optim.lr: {normal: [0, 1]}}", "expected a list of values or one of"),
        ("space: {optim.lr: {uniform: [2, 1]}}\nsearch: random", "with a below b"),
        ("space: {optim.lr: {uniform: [1]}}\nsearch: random", "expected two numbers"),
        ("space: {optim.lr: {loguniform: [0, 1]}}\nsearch: random", "above 0"),
        ("space: {run.epochs: {int: [1, 2.5]}}\nsearch: random", "expected whole numbers"),
        ("space: {optim.lr: {uniform: [0.1, 0.2]}}", "a grid needs a list of values, not a range"),
        ("space: {run.out: [a]}", "run.out is set by the sweep itself"),
        ("space: {run.seed: [1]}\nseeds: 2", "run.seed is set by the sweep itself"),
        ("space: {optim.lr: [1]}\ntrials: 0", "trials: expected at least 1, found 0"),
        ("space: {optim.lr: [1]}\nresources: {cpus_per_worker: 0}", "expected a positive number"),
        ("space: {optim.lr: [1]}\nasha: {reduction_factor: 1}", "expected more than 1"),
        (
            "storage: s3://a\nresources: {workers_per_trial: 2}",
            "--resources.workers_per_trial 2 cannot be combined",
        ),
        (
            "resources: {workers_per_trial: 2, gpus_per_worker: 0.5}",
            "expected a whole number for trials of several",
        ),
        ("resources: {gpus_per_worker: 1.5}", "expected a fraction below 1 or a whole number, found 1.5"),
        ("space: {optim.lr: [1]}\nsearch: genetic", "genetic"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(
    tmp_path: Path, run_cli: Callable, content: str, message: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(content)
    arguments = ["--train.data.shards", tmp_path / "shards", "--out", tmp_path / "sweep"]
    code, _, err = run_cli(main, "--config", tmp_path / "sweep.yaml", *arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_without_a_shard_set_is_refused(tmp_path: Path, run_cli: Callable) -> None:
    code, _, err = run_cli(main, "--space", '{"optim.lr": [1]}', "--out", tmp_path / "sweep")
    assert code == 2
    assert "--train.data.shards is missing" in err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("resources: {workers_per_trial: 3}", "expected a multiple of 3, the number of processes"),
        ("package: upfield.txt", "upfield.txt is not a wheel"),
        ("package: FOLDER/other.whl", "is not a wheel of upfield, because it contains other"),
        ("package: FOLDER/torn.whl", "torn.whl cannot be read as a wheel"),
        ("storage: s3//bucket", "storage: s3//bucket/sweep: this is not an address such as s3://bucket/folder"),
        ("storage: folder", "storage: folder/sweep: this is not an address such as s3://bucket/folder"),
    ],
)
def test_settings_that_no_trial_could_train_with_are_refused(
    tmp_path: Path, run_cli: Callable, tiny_shards: Path, content: str, message: str
) -> None:
    base = f"train: {{data: {{shards: {tiny_shards}}}}}\nspace: {{data.batch_size: [2]}}\n"
    (tmp_path / "sweep.yaml").write_text(base + content.replace("FOLDER", str(tmp_path)))
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other/__init__.py", "")
    (tmp_path / "torn.whl").write_bytes((tmp_path / "other.whl").read_bytes()[:20])
    code, _, err = run_cli(main, "--config", tmp_path / "sweep.yaml", "--out", tmp_path / "sweep")
    assert code == 2
    assert message in err


def test_a_mix_that_no_trial_could_train_with_is_refused(tmp_path: Path, run_cli: Callable, tiny_shards: Path) -> None:
    data = f"{{shards: {tiny_shards}, mix: {{kind: {{measured: 1.0}}}}}}"
    (tmp_path / "sweep.yaml").write_text(f"train: {{data: {data}}}\nspace: {{data.batch_size: [2]}}\n")
    code, _, err = run_cli(main, "--config", tmp_path / "sweep.yaml", "--out", tmp_path / "sweep")
    assert code == 2
    assert "has no samples of measured. It has real (" in err


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path, run_cli: Callable, tiny_shards: Path) -> None:
    from upfield.common.command import to_yaml

    arguments = ["--train.data.shards", tiny_shards, "--space", '{"optim.lr": [1e-3]}']
    other = tmp_path / "other"
    other.mkdir()
    (other / "sweep.yaml").write_text(to_yaml(config({"optim.lr": [1e-4]})))
    code, _, err = run_cli(main, *arguments, "--out", other)
    assert code == 2
    assert "this sweep was started with other values of train.data.shards, space.optim.lr." in err
    (other / "sweep.yaml").write_text("a: {")
    code, _, err = run_cli(main, *arguments, "--out", other)
    assert code == 2
    assert "the saved configuration of the sweep is damaged" in err
    (other / "sweep.yaml").rename(other / "notes.txt")
    code, _, err = run_cli(main, *arguments, "--out", other)
    assert code == 2
    assert "exists and is not the folder of a sweep" in err
