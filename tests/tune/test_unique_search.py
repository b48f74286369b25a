"""Optuna's sampler proposes each point once, even after it has been restored from a saved state."""

from pathlib import Path

from optuna.distributions import CategoricalDistribution, IntDistribution
from ray.tune.search import Searcher

from upfield.tune.unique_search import UniqueOptunaSearch

SPACE = {"lr": CategoricalDistribution([0.1, 0.2, 0.3]), "size": IntDistribution(1, 3)}


def searcher(seed: int) -> UniqueOptunaSearch:
    return UniqueOptunaSearch(SPACE, metric="psnr", mode="max", seed=seed)


def points_until_finished(search: UniqueOptunaSearch, prefix: str) -> list[tuple[float, int]]:
    """Return all points that the search proposes, each trained before the next is proposed."""
    points: list[tuple[float, int]] = []
    while (point := search.suggest(f"{prefix}{len(points)}")) != Searcher.FINISHED:
        score = point["lr"] * point["size"]
        search.on_trial_result(f"{prefix}{len(points)}", {"psnr": score, "training_iteration": 1})
        search.on_trial_complete(f"{prefix}{len(points)}", {"psnr": score})
        points.append((point["lr"], point["size"]))
    return points


def test_every_point_of_a_small_space_is_proposed_once() -> None:
    for seed in range(3):
        points = points_until_finished(searcher(seed), "t")
        assert len(points) == len(set(points)) == 9


def test_points_that_are_being_trained_are_not_proposed_again() -> None:
    search = searcher(0)
    points = [search.suggest(f"t{number}") for number in range(9)]
    assert len({(point["lr"], point["size"]) for point in points}) == 9
    assert search.suggest("t9") == Searcher.FINISHED


def test_a_saved_search_remembers_what_it_proposed(tmp_path: Path) -> None:
    first = searcher(0)
    before = [first.suggest(f"a{number}") for number in range(5)]
    first.save(str(tmp_path / "state"))
    second = searcher(0)
    second.restore(str(tmp_path / "state"))
    second.on_trial_complete("a0", {"psnr": 1.0})
    after = points_until_finished(second, "b")
    assert len(after) == 4
    assert not {(point["lr"], point["size"]) for point in before} & set(after)
