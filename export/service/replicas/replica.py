"""One replica: a process that restores strips, and its deployment on Ray Serve."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from upfield.common.cores import num_cores
from upfield.common.environment.settling import settle_environment
from upfield.common.errors import InputError
from upfield.export.configuration import Engine, ServeConfig
from upfield.export.modelfile.engines import open_model_file
from upfield.export.service.replicas.strips import MAX_STRIPS, RestoredStrip, Strip, StripBatcher
from upfield.export.service.scan_requests.enhancement import STRIPS_IN_FLIGHT

# In floating-point arithmetic, 1.0 // 0.2 is 4.
ROUNDING = 1e-6
HEALTH_CHECK_PERIOD_S = 2.0
SPARE_CALLS = 8
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class Replica:
    """A process that restores strips of any scan."""

    def __init__(self, model: str, engine: Engine, device: str, batch_size: int, threads: int) -> None:
        """Load the model on a device, with up to `batch_size` slices in a batch and `threads` CPU threads."""
        settle_environment("serve", in_worker=True)
        self._restorer = open_model_file(Path(model), engine, device, threads, batch_size)
        # Ray Serve's own batching closes a batch while another one is still being computed, so few would be full.
        self._batcher = StripBatcher(self._restorer, batch_size)

    async def restore(self, strip: Strip) -> RestoredStrip:
        """Restore one strip, in batches that it shares with other strips."""
        return await self._batcher.restore(strip)

    async def describe(self) -> dict[str, Any]:
        """Return the execution provider and the id of this process."""
        return {"provider": self._restorer.provider, "pid": os.getpid()}


def replica_deployment(config: ServeConfig, cores: int, gpus: float) -> Any:
    """Return the Ray Serve deployment of the replicas, with their arguments bound.

    Args:
        config: number of replicas, model, device and batch size.
        cores: CPU cores of each replica.
        gpus: GPUs of each replica; a value below 1 is a share of one GPU.
    """
    max_replicas = config.max_replicas or config.replicas
    scaling: dict[str, Any] = {"num_replicas": config.replicas}
    if max_replicas > config.replicas:
        limits = {"min_replicas": config.replicas, "max_replicas": max_replicas, "target_ongoing_requests": MAX_STRIPS}
        scaling = {"autoscaling_config": limits}
    deployment: Any = serve.deployment(
        Replica,
        # The limit exceeds the number of strips, so that health checks also reach a busy replica.
        max_ongoing_requests=config.scans_at_once * STRIPS_IN_FLIGHT + SPARE_CALLS,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        ray_actor_options={"num_cpus": cores, "num_gpus": gpus},
        logging_config=QUIET,
        **scaling,
    )
    # Ray's workers run in other folders, where a relative path would not exist.
    return deployment.bind(str(config.model.absolute()), config.engine, config.device, config.batch_size, cores)


def replica_resources(config: ServeConfig, nodes: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """Return the number of CPU cores and GPUs of one replica.

    Args:
        config: number of replicas, and the resources that each of them asks for.
        nodes: result of `ray.nodes()`.

    Raises:
        InputError: the nodes have too few cores or GPUs for all replicas.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    cores = config.cores_per_replica or (1 if config.address else max(num_cores() // config.replicas, 1))
    has_gpu = config.device != "cpu" and any(resource.get("GPU", 0) for resource in resources)
    gpus = config.gpus_per_replica if has_gpu else 0.0
    room = sum(
        min(int(resource.get("CPU", 0) // cores), int(resource.get("GPU", 0) / gpus + ROUNDING) if gpus else 2**31)
        for resource in resources
    )
    if room < config.replicas:
        raise InputError(
            f"replicas: there is room for only {room} of {config.replicas} replicas with {cores} cores and {gpus:g} "
            "GPUs each. Ask for fewer replicas, or lower --cores_per_replica and --gpus_per_replica."
        )
    return cores, gpus
