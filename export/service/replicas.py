"""Replicas that restore strips of slices, on Ray Serve."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from upfield.common.cores import num_cores
from upfield.common.errors import InputError, RunError
from upfield.common.progress import say
from upfield.common.ray_cluster import connect_ray
from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.service.scan_job import WINDOW
from upfield.export.service.strips import MAX_STRIPS, Batcher, EngineError, Restored, SliceBatch, Strip

# As a float, 1.0 // 0.2 is 4.
ROUNDING = 1e-6
# A batch is restored again when its replica dies under it, but one that kills every replica must not go on for ever.
MAX_TRIES = 3
READY_S, HEALTH_S = 5.0, 2.0
STORE_BYTES = 512 * 2**20
SPARE = 8
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class Replica:
    """One process that restores strips, whoever they come from."""

    def __init__(self, model: str, device: str, batch_size: int, threads: int) -> None:
        """Load the model."""
        self._restorer = OnnxRestorer(Path(model), device, threads, batch_size)
        # Ray Serve's own batches close as soon as they may, also while another one is at work: few would be full.
        self._batcher = Batcher(self._restorer, batch_size)

    async def restore(self, strip: Strip) -> Restored:
        """Restore one strip, in batches shared with others."""
        return await self._batcher.restore(strip)

    async def describe(self) -> dict[str, Any]:
        """Say what this process runs on."""
        return {"provider": self._restorer.provider, "pid": os.getpid()}


class RayEngine:
    """The replicas, as the web application sees them."""

    def __init__(self, config: ServeConfig, card: ModelCard, note: Callable[[SliceBatch], None], folder: Path) -> None:
        """Start Ray, or connect to its cluster, and the replicas; wait until one of them has loaded the model.

        Args:
            config: what to start.
            card: of the model.
            note: told of every batch.
            folder: for the files of a Ray that is started.

        Raises:
            InputError: there is no such cluster, or it has not what a replica needs.
            RunError: Ray or the replicas do not start.
        """
        assert config.model is not None
        self.batch_size = config.batch_size
        self.context, self.normalisation = card.context, card.normalisation
        self._note = note
        # One for each entrance: what a killed one has left on a cluster is replaced when it is started again.
        self._name = f"upfield-{socket.gethostname()}-{config.port or os.getpid()}"
        self._is_own = config.address is None
        self._has_begun_serve = False
        # Its steps, and replicas that die, are told in our words.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            connect(config.address, folder)
            self._handle = self._deploy(config)
            self.provider = self._handle.describe.remote().result(timeout_s=60)["provider"]
        except (RuntimeError, RayError, TimeoutError) as error:
            self.stop()
            if isinstance(error, RunError):
                raise
            raise RunError(f"expected replicas to start, found {type(error).__name__}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def _deploy(self, config: ServeConfig) -> Any:
        application = replicas_of(config, *needs(config, ray.nodes()))
        with _own_signals():
            self._has_begun_serve = not _serves()
            # The service has an entrance of its own, so that limits, words and counters are in one place.
            serve.start(proxy_location="Disabled", logging_config=QUIET)
            return serve.run(application, name=self._name, route_prefix=None, logging_config=QUIET)

    async def restore(self, owner: str, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Restore a strip `(N, 1 + 2*context, H, W)` to `(N, 1, H, W)`; again where its replica dies under it.

        Raises:
            EngineError: replicas die again and again.
        """
        strip, lost = Strip(owner, low), None
        for number in range(1, MAX_TRIES + 1):
            try:
                restored: Restored = await self._handle.restore.remote(strip)
            except RayTaskError:
                raise
            except (RayError, RayServeException) as error:
                lost = error
                if number < MAX_TRIES:
                    say("a replica was lost; what it was at is restored again")
                continue
            for batch in restored.batches:
                self._note(batch)
            return restored.high
        raise EngineError(f"expected replicas to stay alive, found {MAX_TRIES} lost: {lost}") from lost

    async def is_ready(self) -> bool:
        """Tell whether a replica answers, which it does once it has loaded the model."""
        try:
            async with asyncio.timeout(READY_S):
                await self._handle.describe.remote()
        except (RayError, RayServeException, TimeoutError):
            return False
        return True

    def stop(self) -> None:
        """End what was started: replicas, and Ray where it is this process's own."""
        if not self._is_own and ray.is_initialized():
            with contextlib.suppress(RayError, RayServeException):
                serve.delete(self._name)
                # Another service may have come to share it.
                if self._has_begun_serve and not serve.status().applications:
                    serve.shutdown()
        ray.shutdown()


def _serves() -> bool:
    """Tell whether the cluster runs Ray Serve already."""
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def replicas_of(config: ServeConfig, cores: int, gpus: float) -> Any:
    """Give the deployment of the replicas, of so many cores and GPUs each, bound to what they need."""
    most = config.max_replicas or config.replicas
    scaling: dict[str, Any] = {"num_replicas": config.replicas}
    if most > config.replicas:
        limits = {"min_replicas": config.replicas, "max_replicas": most, "target_ongoing_requests": MAX_STRIPS}
        scaling = {"autoscaling_config": limits}
    deployment: Any = serve.deployment(
        Replica,
        # Questions whether a replica is alive must get through when it is busy.
        max_ongoing_requests=config.scans_at_once * WINDOW + SPARE,
        health_check_period_s=HEALTH_S,
        ray_actor_options={"num_cpus": cores, "num_gpus": gpus},
        logging_config=QUIET,
        **scaling,
    )
    assert config.model is not None
    # Ray's workers start in folders of their own.
    return deployment.bind(str(config.model.absolute()), config.device, config.batch_size, cores)


def connect(address: str | None, folder: Path) -> None:
    """Connect to a Ray cluster, or start Ray on this machine alone.

    Args:
        address: of the cluster, `HOST:PORT` or `auto`; None starts Ray, whatever else runs here.
        folder: for the files of a Ray that is started; a short name, as Unix has it for sockets.

    Raises:
        InputError: no cluster at that address.
        RunError: Ray cannot start on this machine.
    """
    own: dict[str, Any] = {
        "object_store_memory": STORE_BYTES,
        "_temp_dir": str(folder / "ray"),
        "num_cpus": len(os.sched_getaffinity(0)),
    }
    with _own_signals():
        if address is None:
            connect_ray("local", **own)
        else:
            connect_ray(address)


def needs(config: ServeConfig, nodes: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """Give the cores and GPUs of one replica.

    Args:
        config: what is asked for.
        nodes: as `ray.nodes` gives them.

    Raises:
        InputError: the machines have too few for all replicas, of which some would never start.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    here = num_cores()
    cores = config.cores_per_replica or (1 if config.address else max(here // config.replicas, 1))
    has_gpu = config.device != "cpu" and any(resource.get("GPU", 0) for resource in resources)
    gpus = config.gpus_per_replica if has_gpu else 0.0
    places = sum(
        min(int(resource.get("CPU", 0) // cores), int(resource.get("GPU", 0) / gpus + ROUNDING) if gpus else 2**31)
        for resource in resources
    )
    if places < config.replicas:
        raise InputError(
            f"replicas: expected room for {config.replicas} of {cores} cores and {gpus:g} GPUs each, found room for "
            f"{places}; ask for fewer, or for less with --cores_per_replica and --gpus_per_replica"
        )
    return cores, gpus


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's answers to signals: Ray sets its own, which end with the signal's number as exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
