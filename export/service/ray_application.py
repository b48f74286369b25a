"""The service as Ray Serve deploys it by itself, on Kubernetes for instance: an entrance for it, and the same replicas.

Serve imports it as `upfield.export.service.ray_application:application`; its `args` are the keys of `upfield serve`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from upfield.common.command import from_tree
from upfield.common.errors import InputError
from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.serve import about_model, read_token
from upfield.export.service.counters import Counters
from upfield.export.service.replicas import QUIET, RayEngine, Replica, replicas_of
from upfield.export.service.strips import SliceBatch
from upfield.export.service.webapp import build_app


class DeployedEngine(RayEngine):
    """Replicas that Ray Serve has started, and ends."""

    def __init__(self, config: ServeConfig, card: ModelCard, note: Callable[[SliceBatch], None], handle: Any) -> None:
        """Take over the handle of the replicas."""
        self.batch_size = config.batch_size
        self.context, self.normalisation = card.context, card.normalisation
        self._note, self._handle = note, handle


def application(args: dict[str, Any]) -> Any:
    """Give the application for the keys of `upfield serve`; host, port and address are Ray Serve's own to decide.

    Raises:
        InputError: unknown keys, values that do not fit, or no model.
    """
    config = from_tree(ServeConfig, args, "args")
    if config.model is None:
        raise InputError("args: expected `model`, found none; give the path of the .onnx file, the same on every node")
    gpus = 0.0 if config.device == "cpu" else config.gpus_per_replica

    def entrance() -> FastAPI:
        return build_entrance(config)

    deployment: Any = serve.deployment(
        serve.ingress(entrance)(),
        name="Entrance",
        # Scans wait in the entrance's own queue, which answers when it is full.
        max_ongoing_requests=4 * (config.scans_at_once + config.max_queue) + 16,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=config.timeout_s,
        logging_config=QUIET,
    )
    return deployment.bind(replicas_of(config, config.cores_per_replica or 1, gpus))


def build_entrance(config: ServeConfig) -> FastAPI:
    """Build the web application where Ray Serve runs it, before the replicas that it sends strips to."""
    assert config.model is not None
    card = OnnxRestorer(config.model, "cpu").card
    counters = Counters(config.batch_size)
    handle = serve.get_deployment_handle(Replica.__name__, app_name=serve.get_replica_context().app_name)
    engine = DeployedEngine(config, card, counters.note_batch, handle)
    folder = Path(tempfile.mkdtemp(prefix="upfield-serve-"))
    # Ray Serve listens, and under which name is for it to say.
    reached = replace(config, host="0.0.0.0")
    return build_app(
        reached, engine, about_model(config, card, config.device), counters, read_token(config.token_file), folder
    )
