"""The Ray cluster of a sweep: connection, the same code on every node, and room for trials."""

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
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from upfield.common.errors import InputError
from upfield.common.ray_cluster import connect_ray
from upfield.tune.configuration import ResourceConfig

ANSWER_S = 120.0
POLL_S = 2.0
# 0.3 CPUs hold three workers of 0.1, although 0.3 // 0.1 is 2 in floating point.
ROUNDING = 1e-9
BUILD = "Build one with: pip wheel --no-deps ."


def connect(address: str | None, package: Path | None) -> None:
    """Connect to a cluster, or start Ray on this machine, and check that every node has this version of the code.

    Args:
        address: address of the cluster; see `connect_ray`.
        package: a wheel of upfield to send to every node; None uses the code that is installed there.

    Raises:
        InputError: no cluster answers at the address, `package` is not a wheel of upfield, or a node has other code.
        RunError: Ray cannot start on this machine.
    """
    if package is None:
        connect_ray(address)
    else:
        # The unpacked modules are sent, not the wheel: for a wheel, Ray would install all dependencies of the package
        # in a new environment on every node.
        with tempfile.TemporaryDirectory() as folder:
            connect_ray(address, runtime_env={"py_modules": unpack_wheel(package, Path(folder))})
    nodes = alive_nodes()
    if package is not None or len(nodes) > 1:
        refuse_other_code(nodes)


def unpack_wheel(wheel: Path, folder: Path) -> list[str]:
    """Unpack a wheel of upfield into `folder`, and return the folders of its modules and its metadata.

    Raises:
        InputError: the file is not a wheel of upfield.
    """
    try:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"--package: {wheel} cannot be read as a wheel ({error}). {BUILD}") from error
    parts = [*folder.glob("upfield"), *folder.glob("upfield-*.dist-info")]
    if len(parts) != 2:
        content = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise InputError(f"--package: {wheel} is not a wheel of upfield, because it contains {content}. {BUILD}")
    return [str(part) for part in parts]


def alive_nodes() -> list[Mapping[str, Any]]:
    """Return the cluster's live nodes, as `ray.nodes` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def hash_code(root: Path) -> str:
    """Return a hash of all modules of the package.

    Comparing version numbers is not enough, because the number stays the same while the code is edited.

    Args:
        root: folder that holds the folders of the package: `upfield` in an installation, or a checkout.
    """
    # A checkout keeps the modules of `upfield` itself in a folder.
    own = root / "api" if (root / "api").is_dir() else root
    digest = hashlib.sha256()
    for path in sorted(own.glob("*.py")):
        digest.update(f"{path.relative_to(own)}\n".encode() + path.read_bytes())
    # In a checkout, only the folders of the package have an __init__.py.
    for package in sorted(root.glob("*/__init__.py")):
        for path in sorted(package.parent.rglob("*.py")):
            if package.parent != own:
                digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def hash_own_code() -> str:
    """Return the hash of the package that the calling process imports."""
    return hash_code(Path(__file__).parents[1])


def refuse_other_code(nodes: Iterable[Mapping[str, Any]]) -> None:
    """Check that each node imports the code that this process imports.

    Raises:
        InputError: a node has other code, lacks it, or does not answer within ANSWER_S.
    """
    expected = hash_own_code()
    references: list[tuple[str, Any]] = []
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(str(node["NodeID"]), soft=False)
        task = ray.remote(hash_own_code).options(num_cpus=0, scheduling_strategy=on_node)
        references.append((str(node["NodeManagerAddress"]), task.remote()))
    for address, reference in references:
        try:
            code = ray.get(reference, timeout=ANSWER_S)
            problem = f"its code of upfield ({code}) differs from the code here ({expected})"
        except GetTimeoutError:
            code, problem = None, f"it did not answer within {ANSWER_S:g} s"
        # The task imports upfield on the node, which can raise any exception.
        except Exception as error:
            code, problem = None, f"it cannot import upfield ({type(error).__name__})"
        if code != expected:
            raise InputError(
                f"node {address}: {problem}. Install the same version there, or send it with --package WHEEL "
                "(pip wheel --no-deps .)."
            )


def resolve_gpus(resources: ResourceConfig) -> ResourceConfig:
    """Set the number of GPUs of a worker if the user has not: one if the cluster has any GPU, otherwise none."""
    if resources.gpus_per_worker is not None:
        return resources
    return replace(resources, gpus_per_worker=1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0)


def count_concurrent_trials(resources: ResourceConfig, wait_s: float = 0) -> int:
    """Return how many trials the cluster can hold at once, at least one.

    Args:
        resources: resources of one trial.
        wait_s: how long to wait until a trial fits. During this time, the cluster's autoscaler, if any, is asked for
            nodes.

    Raises:
        InputError: no trial fits, so Ray would wait forever.
    """
    deadline = time.monotonic() + wait_s
    try:
        while (num_trials := count_fitting(resources, list_capacities())) == 0:
            if time.monotonic() >= deadline:
                refuse_impossible(resources, wait_s)
            request_nodes(resources.workers_per_trial, resources)
            time.sleep(POLL_S)
    finally:
        if wait_s:
            request_nodes(0, resources)
    return num_trials


def list_capacities() -> list[tuple[float, float]]:
    """Return (CPUs, GPUs) of each live node."""
    capacities = [node["Resources"] for node in alive_nodes()]
    return [(float(capacity.get("CPU", 0)), float(capacity.get("GPU", 0))) for capacity in capacities]


def request_nodes(num_workers: int, resources: ResourceConfig) -> None:
    """Ask the cluster's autoscaler, if any, for room for `num_workers` workers; 0 withdraws the earlier request."""
    worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker or 0}
    request_resources(bundles=[{name: number for name, number in worker.items() if number}] * num_workers)


def count_fitting(resources: ResourceConfig, nodes: Iterable[tuple[float, float]]) -> int:
    """Return how many trials fit on nodes of (CPUs, GPUs) at once; a worker cannot span two nodes."""
    num_workers = 0
    for cpus, gpus in nodes:
        by_gpus = gpus / resources.gpus_per_worker if resources.gpus_per_worker else math.inf
        num_workers += math.floor(min(cpus / resources.cpus_per_worker, by_gpus) + ROUNDING)
    return num_workers // resources.workers_per_trial


def refuse_impossible(resources: ResourceConfig, waited_s: float) -> NoReturn:
    """Raise an InputError that states the resources of a trial and those of the cluster."""
    workers, cpus, gpus = resources.workers_per_trial, resources.cpus_per_worker, resources.gpus_per_worker or 0
    total = ray.cluster_resources()
    waited = f" after {waited_s:g} s" if waited_s else ""
    raise InputError(
        f"resources: a trial needs {workers} processes of {cpus:g} CPUs and {gpus:g} GPUs each, which do not fit the "
        f"cluster{waited}: it has {len(alive_nodes())} nodes with {total.get('CPU', 0):g} CPUs and "
        f"{total.get('GPU', 0):g} GPUs in total. Ask for less, or allow an autoscaling cluster more time with "
        "--wait_for_nodes_s."
    )
