"""What a sweep searches: dotted training keys with their values or ranges, and the points of it."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from upfield.common.command import from_tree, to_tree
from upfield.common.errors import InputError
from upfield.distributed.configuration import TrainConfig
from upfield.tune.configuration import SweepConfig

Point = dict[str, Any]
KINDS = ("uniform", "loguniform", "int")
OWN_KEYS = ("run.out", "run.resume", "processes", "data.trace")
# Points of different sets would be measured on different slices.
SAME_FOR_ALL = ("data.shards",)
NAME_LENGTH = 100
MOST_DRAWS = 100  # for each point wanted


@dataclass(frozen=True)
class Range:
    """A range of numbers."""

    kind: str
    """`uniform`, `loguniform`, or `int`, whose ends are both included."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    def draw(self, generator: np.random.Generator) -> float | int:
        """Draw a number."""
        if self.kind == "int":
            return int(generator.integers(int(self.low), int(self.high), endpoint=True))
        if self.kind == "loguniform":
            return float(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return float(generator.uniform(self.low, self.high))


Axis = list[Any] | Range


def read_space(config: SweepConfig) -> dict[str, Axis]:
    """Read the space, and make sure that training takes every value of it.

    Raises:
        InputError: nothing to search, an unknown key, a range that is none, or a value that training refuses.
    """
    if not config.space:
        raise InputError("space: expected at least one dotted training key with what to try, found none")
    axes: dict[str, Axis] = {}
    for key, given in config.space.items():
        if not isinstance(key, str):
            raise InputError(f"space: {key}: expected a dotted training key, such as optim.lr, found a number")
        if key in OWN_KEYS or (key == "run.seed" and config.seeds > 1):
            raise InputError(f"space: {key}: expected a key that the sweep does not set itself, found it; leave it out")
        if key in SAME_FOR_ALL:
            raise InputError(
                f"space: {key}: expected one for all points, whose validation splits are compared, found several; "
                f"give --train.{key}"
            )
        axis = _read_axis(key, given)
        if isinstance(axis, Range) and config.search == "grid":
            raise InputError(
                f"space: {key}: expected a list for the grid, found a range; use --search random or optuna"
            )
        axes[key] = _as_trained(config.train, key, axis)
    return axes


def _as_trained(base: TrainConfig, key: str, axis: Axis) -> Axis:
    """Give an axis with the values that training makes of those given, each once: 1e-4 is text to YAML 1.1.

    Raises:
        InputError: no such key, or a value that it cannot take.
    """
    if isinstance(axis, Range):
        for end in (axis.low, axis.high):
            with_point(base, {key: int(end) if axis.kind == "int" else end})
        return axis
    values = [_value_at(with_point(base, {key: value}), key) for value in axis]
    return [value for number, value in enumerate(values) if value not in values[:number]]


def _value_at(config: TrainConfig, key: str) -> Any:
    node: Any = to_tree(config)
    for part in key.split("."):
        node = node[part]
    return node


def _read_axis(key: str, given: Any) -> Axis:
    if isinstance(given, list):
        if not given:
            raise InputError(f"space: {key}: expected at least one value to try, found none")
        return given
    if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in KINDS:
        expected = ", ".join(f"{{{kind}: [a, b]}}" for kind in KINDS)
        raise InputError(f"space: {key}: expected a list of values or one of {expected}, found {json.dumps(given)}")
    [(kind, ends)] = given.items()
    numbers = [_number(end) for end in ends] if isinstance(ends, list) else []
    low, high = numbers if len(numbers) == 2 else (None, None)
    if low is None or high is None or not low < high:
        raise InputError(f"space: {key}: expected two numbers [a, b] with a below b, found {json.dumps(ends)}")
    if kind == "loguniform" and low <= 0:
        raise InputError(f"space: {key}: expected a loguniform range above 0, found {json.dumps(ends)}")
    if kind == "int" and (low, high) != (int(low), int(high)):
        raise InputError(f"space: {key}: expected whole numbers, found {json.dumps(ends)}")
    return Range(kind, low, high)


def _number(value: Any) -> float | None:
    """Read a number; YAML 1.1 takes 1e-4 for text."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None


def with_point(base: TrainConfig, point: Mapping[str, Any]) -> TrainConfig:
    """Give a training configuration with dotted keys, text, replaced.

    Raises:
        InputError: no such key, or a value that it cannot take.
    """
    tree = to_tree(base)
    for key, value in point.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"space: {key}: expected a key of the training configuration, found one below a value")
        node[leaf] = value
    return from_tree(TrainConfig, tree, "space")


def grid_points(axes: Mapping[str, Axis]) -> list[Point]:
    """Give all combinations of lists."""
    lists = [axis for axis in axes.values() if isinstance(axis, list)]
    assert len(lists) == len(axes)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*lists)]


def random_points(axes: Mapping[str, Axis], count: int, seed: int) -> list[Point]:
    """Draw so many different points, fewer where the space holds no more; a larger count only adds to them."""
    points: dict[str, Point] = {}
    for number in range(count * MOST_DRAWS):
        point = dict(_draw(axes, np.random.default_rng((seed, number))))
        points.setdefault(json.dumps(point), point)
        if len(points) == count:
            break
    return list(points.values())


def _draw(axes: Mapping[str, Axis], generator: np.random.Generator) -> Iterator[tuple[str, Any]]:
    for key, axis in axes.items():
        yield key, axis.draw(generator) if isinstance(axis, Range) else axis[int(generator.integers(len(axis)))]


def points_of(config: SweepConfig, axes: Mapping[str, Axis]) -> list[Point] | None:
    """Give the points that are known beforehand, each once; None where a sampler proposes them."""
    if config.search == "optuna":
        return None
    return grid_points(axes) if config.search == "grid" else random_points(axes, config.trials, config.seed)


def name_of(point: Mapping[str, Any]) -> str:
    """Name the run of a point: what differs, as far as it fits, and a hash of all of it."""
    words = "_".join(f"{key.rsplit('.', 1)[-1]}={spell(value)}" for key, value in sorted(point.items()))
    plain = "".join(letter if letter.isalnum() or letter in "=_.+-" else "-" for letter in words)
    digest = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()
    return f"{plain[:NAME_LENGTH]}_{digest[:8]}"


def spell(value: Any) -> str:
    """Spell a value of a point."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
