"""The Ray cluster of a sweep: reached, with this package's code on every node, and large enough."""

import hashlib
import math
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from upfield.common.errors import InputError
from upfield.common.ray_cluster import connect_ray
from upfield.tune.configuration import ResourceConfig

ANSWER_S = 120.0
POLL_S = 2.0
# Of binary fractions: three workers of 0.1 CPUs fit 0.3.
ROUNDING = 1e-9
FOLDERS = ("common", "imaging", "sharding", "model", "distributed", "tune")


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
            connect_ray(address, runtime_env={"py_modules": unpack(package, Path(folder))})
    nodes = alive_nodes()
    if package is not None or len(nodes) > 1:
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
        root = Path(__file__).parents[1] / folder
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{folder}/{path.relative_to(root)}\n".encode() + path.read_bytes())
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


def with_gpus(resources: ResourceConfig) -> ResourceConfig:
    """Decide on the GPUs of a worker where they are not given: one, if the cluster has any."""
    if resources.gpus_per_worker is not None:
        return resources
    return replace(resources, gpus_per_worker=1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0)


def trials_that_fit(resources: ResourceConfig, wait_s: float = 0) -> int:
    """Give how many trials the cluster can hold at once, at least one.

    Args:
        resources: of a trial.
        wait_s: how long to wait for nodes, which are asked for where the cluster scales by itself.

    Raises:
        InputError: none, so that Ray would wait for ever.
    """
    until = time.monotonic() + wait_s
    try:
        while (fitting := count_fitting(resources, free_of_nodes())) == 0:
            if time.monotonic() >= until:
                refuse_impossible(resources, wait_s)
            ask_for_nodes(resources.workers_per_trial, resources)
            time.sleep(POLL_S)
    finally:
        if wait_s:
            ask_for_nodes(0, resources)
    return fitting


def free_of_nodes() -> list[tuple[float, float]]:
    """Give (CPUs, GPUs) of each node."""
    found = [node["Resources"] for node in alive_nodes()]
    return [(float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in found]


def ask_for_nodes(workers: int, resources: ResourceConfig) -> None:
    """Ask the cluster's autoscaler, if it has one, for room for so many workers; none takes an earlier wish back."""
    from ray.autoscaler.sdk import request_resources

    worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker or 0}
    request_resources(bundles=[{name: number for name, number in worker.items() if number}] * workers)


def count_fitting(resources: ResourceConfig, nodes: Iterable[tuple[float, float]]) -> int:
    """Give how many trials nodes of (CPUs, GPUs) can hold at once, each worker on one of them."""
    workers = 0
    for cpus, gpus in nodes:
        by_gpus = gpus / resources.gpus_per_worker if resources.gpus_per_worker else math.inf
        workers += math.floor(min(cpus / resources.cpus_per_worker, by_gpus) + ROUNDING)
    return workers // resources.workers_per_trial


def refuse_impossible(resources: ResourceConfig, waited_s: float) -> NoReturn:
    """Raise InputError with what a trial needs and what there is."""
    workers, cpus, gpus = resources.workers_per_trial, resources.cpus_per_worker, resources.gpus_per_worker or 0
    total = ray.cluster_resources()
    waited = f", after {waited_s:g} s," if waited_s else ""
    raise InputError(
        f"resources: expected a trial that fits this cluster, found{waited} {workers} processes that need {cpus:g} "
        f"CPUs and {gpus:g} GPUs each, on one node each, and {len(alive_nodes())} nodes with {total.get('CPU', 0):g} "
        f"CPUs and {total.get('GPU', 0):g} GPUs together; ask for less, or, where the cluster starts nodes by itself, "
        "give it time with --wait_for_nodes_s"
    )
