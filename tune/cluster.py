"""The Ray cluster of a sweep: reached, with this package's code on every node, and large enough."""

import hashlib
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from upfield.sharding.errors import InputError
from upfield.sharding.tasks import connect_ray
from upfield.tune.configuration import ResourceConfig

ANSWER_S = 120.0
MOST = 10_000
FOLDERS = ("sharding", "model", "distributed", "tune")


def connect(address: str | None, package: Path | None) -> None:
    """Connect to a cluster, or start Ray here, and make sure that every node has this code.

    Raises:
        InputError: there is no cluster at that address, or a node lacks this code.
        RunError: Ray cannot start on this machine.
    """
    if package is None:
        connect_ray(address)
    else:
        # Not the wheel itself, with which Ray would install all that it depends on, in a new environment on every node.
        with tempfile.TemporaryDirectory() as folder:
            connect_ray(address, {"py_modules": unpack(package, Path(folder))})
    nodes = alive_nodes()
    if len(nodes) > 1:
        refuse_other_code(nodes)


def unpack(wheel: Path, folder: Path) -> list[str]:
    """Unpack a wheel of this package, and give the folders that it consists of: modules, and their metadata.

    Raises:
        InputError: it is none.
    """
    try:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel}: expected a wheel, found none that can be read: {error}") from error
    parts = [*folder.glob("upfield"), *folder.glob("upfield-*.dist-info")]
    if len(parts) != 2:
        found = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise InputError(f"{wheel}: expected a wheel of upfield, found one of {found or 'nothing'}")
    return [str(part) for part in parts]


def alive_nodes() -> list[Mapping[str, Any]]:
    """Give the cluster's nodes, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def own_code() -> str:
    """Give a hash of this package's code, as a process of the cluster sees it: a version stays while it is edited."""
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((Path(__file__).parents[1] / folder).glob("*.py")):
            digest.update(f"{folder}/{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def refuse_other_code(nodes: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError where a node has not the code that this process has."""
    expected = own_code()
    asked: list[tuple[str, Any]] = []
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(str(node["NodeID"]), soft=False)
        task = ray.remote(own_code).options(num_cpus=0, scheduling_strategy=where)
        asked.append((str(node["NodeManagerAddress"]), task.remote()))
    for address, reference in asked:
        try:
            found = ray.get(reference, timeout=ANSWER_S)
        except GetTimeoutError:
            found = f"no answer within {ANSWER_S:g} s"
        # What the task needs is imported where it runs.
        except Exception as error:
            found = f"none that can be imported ({type(error).__name__})"
        if found != expected:
            raise InputError(
                f"node {address}: expected upfield's code as it is here ({expected}), found {found}; install the same "
                "version there, or send it along with --package WHEEL (pip wheel --no-deps .)"
            )


def bundles_of(resources: ResourceConfig) -> list[tuple[float, float]]:
    """Give (CPUs, GPUs) of each process of a trial; several workers have a driver beside them."""
    driver = [(1.0, 0.0)] if resources.workers_per_trial > 1 else []
    worker = (float(resources.cpus_per_worker), float(resources.gpus_per_worker))
    return [*driver, *[worker] * resources.workers_per_trial]


def trials_that_fit(resources: ResourceConfig) -> int:
    """Give how many trials the cluster can hold at once."""
    found = [node["Resources"] for node in alive_nodes()]
    free = [(float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in found]
    return count_fitting(bundles_of(resources), free)


def count_fitting(bundles: list[tuple[float, float]], nodes: list[tuple[float, float]]) -> int:
    """Give how many times all bundles can be placed, each on one node; all are (CPUs, GPUs)."""
    free = list(nodes)
    for count in range(MOST):
        for cpus, gpus in bundles:
            at = next((i for i, node in enumerate(free) if node[0] >= cpus and node[1] >= gpus), None)
            if at is None:
                return count
            free[at] = (free[at][0] - cpus, free[at][1] - gpus)
    return MOST


def refuse_impossible(resources: ResourceConfig, fitting: int) -> None:
    """Raise InputError where no trial could ever be placed: Ray would wait for ever."""
    if fitting > 0:
        return
    bundles = bundles_of(resources)
    cpus, gpus = (sum(bundle[i] for bundle in bundles) for i in (0, 1))
    total = ray.cluster_resources()
    raise InputError(
        f"resources: expected a trial that fits this cluster of {len(alive_nodes())} nodes with "
        f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs, found {len(bundles)} processes that need "
        f"{cpus:g} CPUs and {gpus:g} GPUs, each process on one node; ask for less"
    )
