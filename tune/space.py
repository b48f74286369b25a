"""The search space of a sweep (dotted training keys with values or ranges) and its points."""

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
from upfield.distributed.configuration import TrainSettings
from upfield.tune.configuration import SweepConfig

Point = dict[str, Any]
KINDS = ("uniform", "loguniform", "int")
OWN_KEYS = ("run.out", "run.resume", "processes", "data.trace")
# Points with different values would be validated on different slices.
SAME_FOR_ALL = ("data.shards", "run.validation_slices")
NAME_LENGTH = 100
MAX_DRAWS = 100  # per point


@dataclass(frozen=True)
class Range:
    """A range of numbers."""

    kind: str
    """`uniform`, `loguniform`, or `int`, which includes both ends."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    def draw(self, generator: np.random.Generator) -> float | int:
        """Draw a number from the range."""
        if self.kind == "int":
            return int(generator.integers(int(self.low), int(self.high), endpoint=True))
        if self.kind == "loguniform":
            return float(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return float(generator.uniform(self.low, self.high))


Axis = list[Any] | Range


def read_space(config: SweepConfig) -> dict[str, Axis]:
    """Read the search space and check that training accepts every value in it.

    Raises:
        InputError: the space is empty, a key is unknown, a range is malformed, or training refuses a value.
    """
    if not config.space:
        raise InputError("space: no training key is named. Add at least one, such as optim.lr, with its values.")
    axes: dict[str, Axis] = {}
    for key, values in config.space.items():
        if not isinstance(key, str):
            raise InputError(f"space: expected a dotted training key such as optim.lr, found {key}.")
        if key in OWN_KEYS or (key == "run.seed" and config.seeds > 1):
            raise InputError(f"space: {key} is set by the sweep itself. Remove it from the space.")
        if key in SAME_FOR_ALL:
            raise InputError(
                f"space: {key} must be the same for all points, because they are compared on the same validation "
                f"slices. Set --train.{key} instead."
            )
        axis = _read_axis(key, values)
        if isinstance(axis, Range) and config.search == "grid":
            raise InputError(
                f"space: {key}: a grid needs a list of values, not a range. List the values, or use --search random or "
                "optuna."
            )
        axes[key] = _parse_values(config.train, key, axis)
    return axes


def _parse_values(base: TrainSettings, key: str, axis: Axis) -> Axis:
    """Parse an axis's values as training does, because YAML 1.1 reads 1e-4 as text, and remove repeated values.

    Raises:
        InputError: the key is unknown, or training refuses a value.
    """
    if isinstance(axis, Range):
        for end in (axis.low, axis.high):
            apply_point(base, {key: int(end) if axis.kind == "int" else end})
        return axis
    values = [_value_at(apply_point(base, {key: value}), key) for value in axis]
    return [value for number, value in enumerate(values) if value not in values[:number]]


def _value_at(config: TrainSettings, key: str) -> Any:
    node: Any = to_tree(config)
    for part in key.split("."):
        node = node[part]
    return node


def _read_axis(key: str, values: Any) -> Axis:
    if isinstance(values, list):
        if not values:
            raise InputError(f"space: {key}: the list of values is empty. Add at least one value, or remove the key.")
        return values
    if not isinstance(values, dict) or len(values) != 1 or next(iter(values)) not in KINDS:
        expected = ", ".join(f"{{{kind}: [a, b]}}" for kind in KINDS)
        raise InputError(f"space: {key}: expected a list of values or one of {expected}, found {json.dumps(values)}.")
    [(kind, ends)] = values.items()
    numbers = [_number(end) for end in ends] if isinstance(ends, list) else []
    low, high = numbers if len(numbers) == 2 else (None, None)
    if low is None or high is None or not low < high:
        raise InputError(f"space: {key}: expected two numbers [a, b] with a below b, found {json.dumps(ends)}.")
    if kind == "loguniform" and low <= 0:
        raise InputError(f"space: {key}: expected a loguniform range above 0, found {json.dumps(ends)}.")
    if kind == "int" and (low, high) != (int(low), int(high)):
        raise InputError(f"space: {key}: expected whole numbers, found {json.dumps(ends)}.")
    return Range(kind, low, high)


def _number(value: Any) -> float | None:
    """Convert a number, or text such as 1e-4 (which YAML 1.1 reads as text); return None if it is not finite."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None


def apply_point(base: TrainSettings, point: Mapping[str, Any]) -> TrainSettings:
    """Return a training configuration in which the dotted keys of `point` are replaced.

    Raises:
        InputError: a key is unknown, or training refuses its value.
    """
    tree = to_tree(base)
    for key, value in point.items():
        *parents, leaf = key.split(".")
        node = tree
        for number, parent in enumerate(parents, start=1):
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(
                    f"space: {key} is not a training key, because {'.'.join(parents[:number])} has no keys below it. "
                    "Correct the key."
                )
        node[leaf] = value
    return from_tree(TrainSettings, tree, "space")


def grid_points(axes: Mapping[str, Axis]) -> list[Point]:
    """Return all combinations of the values of axes that are lists."""
    lists = [axis for axis in axes.values() if isinstance(axis, list)]
    assert len(lists) == len(axes)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*lists)]


def random_points(axes: Mapping[str, Axis], count: int, seed: int) -> list[Point]:
    """Draw `count` different points, or fewer if the space has no more.

    A larger count with the same seed draws the same points first.
    """
    points: dict[str, Point] = {}
    for number in range(count * MAX_DRAWS):
        point = dict(_draw(axes, np.random.default_rng((seed, number))))
        points.setdefault(json.dumps(point), point)
        if len(points) == count:
            break
    return list(points.values())


def _draw(axes: Mapping[str, Axis], generator: np.random.Generator) -> Iterator[tuple[str, Any]]:
    for key, axis in axes.items():
        yield key, axis.draw(generator) if isinstance(axis, Range) else axis[int(generator.integers(len(axis)))]


def list_points(config: SweepConfig, axes: Mapping[str, Axis]) -> list[Point] | None:
    """Return the distinct points of a grid or random search; None if a sampler proposes points during the sweep."""
    if config.search == "optuna":
        return None
    return grid_points(axes) if config.search == "grid" else random_points(axes, config.trials, config.seed)


def name_run(point: Mapping[str, Any]) -> str:
    """Return the name of a point's run: its keys and values, cut to NAME_LENGTH characters, and a hash of them all."""
    words = "_".join(f"{key.rsplit('.', 1)[-1]}={format_value(value)}" for key, value in sorted(point.items()))
    plain = "".join(letter if letter.isalnum() or letter in "=_.+-" else "-" for letter in words)
    digest = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()
    return f"{plain[:NAME_LENGTH]}_{digest[:8]}"


def format_value(value: Any) -> str:
    """Format a value of a point; fractional numbers get four significant digits."""
    return f"{value:z.4g}" if isinstance(value, float) else str(value)
