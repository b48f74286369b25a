"""The service as Ray Serve itself deploys it, for instance on Kubernetes: an entrance, and the same replicas.

Serve imports `upfield.export.service.ray_application:application`. Its `args` are the keys of `upfield serve`.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from upfield.common.command import from_tree
from upfield.export.configuration import ServeConfig
from upfield.export.service.access import read_token
from upfield.export.service.counters import Counters
from upfield.export.service.model_info import model_info, read_model
from upfield.export.service.replicas.ray_engine import DeployedEngine
from upfield.export.service.replicas.replica import QUIET, Replica, replica_deployment
from upfield.export.service.webapp import build_app


def application(args: dict[str, Any]) -> Any:
    """Return the application for the keys of `upfield serve`. Ray Serve itself decides host, port and address.

    Raises:
        InputError: a key is unknown or missing (`model` is required), or a value does not fit.
    """
    config = from_tree(ServeConfig, args, "args")
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
    return deployment.bind(replica_deployment(config, config.cores_per_replica or 1, gpus))


def build_entrance(config: ServeConfig) -> FastAPI:
    """Build the web application in the process where Ray Serve runs it.

    Raises:
        InputError: the model file cannot be used, or the token cannot be read.
    """
    # The entrance may have no GPU; the replicas have theirs.
    card = read_model(replace(config, device="cpu"))
    counters = Counters(config.batch_size)
    handle = serve.get_deployment_handle(Replica.__name__, app_name=serve.get_replica_context().app_name)
    engine = DeployedEngine(config, card, counters.note_batch, handle)
    folder = Path(tempfile.mkdtemp(prefix="upfield-serve-"))
    # Ray Serve listens, and its configuration decides under which name.
    reachable = replace(config, host="0.0.0.0")
    return build_app(
        reachable, engine, model_info(config, card, config.device), counters, read_token(config.token_file), folder
    )
