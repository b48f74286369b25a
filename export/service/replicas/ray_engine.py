"""The web application's interface to the replicas: start them on Ray, call them, and stop them."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from upfield.common.errors import RunError
from upfield.common.progress import say
from upfield.common.ray_cluster import connect_ray
from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.card import ModelCard
from upfield.export.service.errors import EngineError
from upfield.export.service.replicas.replica import QUIET, replica_deployment, replica_resources
from upfield.export.service.replicas.strips import RestoredStrip, SliceBatch, Strip

# A strip is sent again when its replica dies. The limit stops a strip that kills every replica.
MAX_TRIES = 3
READY_TIMEOUT_S, START_TIMEOUT_S = 5.0, 60
STORE_BYTES = 512 * 2**20


class RayEngine:
    """Restores strips with replicas that this process starts, on its own Ray or on a Ray cluster."""

    def __init__(
        self, config: ServeConfig, card: ModelCard, note_batch: Callable[[SliceBatch], None], folder: Path
    ) -> None:
        """Start Ray or connect to a cluster, start the replicas, and wait until one of them has loaded the model.

        Args:
            config: the service's configuration.
            card: the model's metadata.
            note_batch: function that is called with every restored batch.
            folder: folder for the files of Ray if it is started here. The path must be short, because Ray keeps
                sockets there, and Unix limits the length of a socket's path.

        Raises:
            InputError: no cluster responds at the address, or it has too few cores or GPUs for the replicas.
            RunError: Ray or the replicas did not start.
        """
        self.batch_size, self.card = config.batch_size, card
        self._note_batch = note_batch
        # A restarted service has the same name, and so replaces the replicas that a killed one left on a cluster.
        self._name = f"upfield-{socket.gethostname()}-{config.port or os.getpid()}"
        self._owns_ray = config.address is None
        self._started_serve = False
        # Ray Serve's own log lines about starting and losing replicas would repeat ours.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            _connect(config.address, folder)
            self._handle = self._deploy(config)
            self.provider = self._handle.describe.remote().result(timeout_s=START_TIMEOUT_S)["provider"]
        except (RuntimeError, RayError, TimeoutError) as error:
            self.stop()
            if isinstance(error, RunError):
                raise
            raise RunError(f"The replicas did not start: {type(error).__name__}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def _deploy(self, config: ServeConfig) -> Any:
        deployment = replica_deployment(config, *replica_resources(config, ray.nodes()))
        with _keep_signal_handlers():
            self._started_serve = not _is_serve_running()
            # Ray Serve's proxy is disabled: requests go to this process, which applies limits and keeps the counters.
            serve.start(proxy_location="Disabled", logging_config=QUIET)
            return serve.run(deployment, name=self._name, route_prefix=None, logging_config=QUIET)

    async def restore(self, owner: str, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Restore a strip, and send it again if its replica dies.

        Args:
            owner: the scan's id.
            low: `(N, 1 + 2*context, H, W)` float32 in [0, 1].

        Returns:
            `(N, 1, H, W)` float32 in [0, 1].

        Raises:
            EngineError: `MAX_TRIES` replicas were lost while they restored this strip.
        """
        strip, lost = Strip(owner, low), None
        for number in range(1, MAX_TRIES + 1):
            try:
                restored: RestoredStrip = await self._handle.restore.remote(strip)
            except RayTaskError:
                raise
            except (RayError, RayServeException) as error:
                lost = error
                if number < MAX_TRIES:
                    say("a replica was lost; restoring its slices again")
                continue
            for batch in restored.batches:
                self._note_batch(batch)
            return restored.high
        raise EngineError(f"{MAX_TRIES} replicas were lost while they restored the same slices: {lost}") from lost

    async def is_ready(self) -> bool:
        """Return whether a replica responds. Replicas respond once they have loaded the model."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._handle.describe.remote()
        except (RayError, RayServeException, TimeoutError):
            return False
        return True

    def stop(self) -> None:
        """Stop the replicas, and stop Ray if this process started it."""
        if not self._owns_ray and ray.is_initialized():
            with contextlib.suppress(RayError, RayServeException):
                serve.delete(self._name)
                # Another service may be using Ray Serve by now.
                if self._started_serve and not serve.status().applications:
                    serve.shutdown()
        ray.shutdown()


class DeployedEngine(RayEngine):
    """Restores strips with replicas that Ray Serve starts and stops."""

    def __init__(
        self, config: ServeConfig, card: ModelCard, note_batch: Callable[[SliceBatch], None], handle: Any
    ) -> None:
        """Set the handle through which the replicas are called.

        Args:
            config: the service's configuration.
            card: the model's metadata.
            note_batch: function that is called with every restored batch.
            handle: Ray Serve's handle of the replicas' deployment.
        """
        self.batch_size, self.card = config.batch_size, card
        self._note_batch, self._handle = note_batch, handle


def _is_serve_running() -> bool:
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def _connect(address: str | None, folder: Path) -> None:
    """Connect to the Ray cluster at `address`; if it is None, start a separate Ray on this machine."""
    own: dict[str, Any] = {
        "object_store_memory": STORE_BYTES,
        "_temp_dir": str(folder / "ray"),
        "num_cpus": len(os.sched_getaffinity(0)),
    }
    with _keep_signal_handlers():
        if address is None:
            connect_ray("local", **own)
        else:
            connect_ray(address)


@contextlib.contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers after the block, because Ray sets its own, which exit with the signal's number."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
