"""The service as an application that Ray Serve deploys, for instance on Kubernetes.

Ray Serve imports `upfield.export.service.ray_application:application` and calls it with `args`, the keys of `upfield
serve`. The application is the web application and its replicas.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from upfield.common.command import from_tree
from upfield.export.configuration import ServeConfig
from upfield.export.pretrained.packaged_model import find_model
from upfield.export.service.access import read_token
from upfield.export.service.counters import Counters
from upfield.export.service.model_info import model_info, read_model
from upfield.export.service.replicas.ray_engine import DeployedEngine
from upfield.export.service.replicas.replica import QUIET, Replica, replica_deployment
from upfield.export.service.webapp import build_app


def application(args: dict[str, Any]) -> Any:
    """Return the application for the keys of `upfield serve`. Ray Serve decides the host, the port and the cluster.

    Raises:
        InputError: a key is unknown, a value is invalid, or no model has the name that `model` states.
    """
    config = from_tree(ServeConfig, args, "args")
    config = replace(config, model=find_model(config.model))
    gpus = 0.0 if config.device == "cpu" else config.gpus_per_replica

    def ingress() -> FastAPI:
        return build_ingress(config)

    deployment: Any = serve.deployment(
        serve.ingress(ingress)(),
        name="Entrance",
        # Scans wait in the web application's own queue, which refuses scans when it is full.
        max_ongoing_requests=4 * (config.scans_at_once + config.max_queue) + 16,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=config.timeout_s,
        logging_config=QUIET,
    )
    return deployment.bind(replica_deployment(config, config.cores_per_replica or 1, gpus))


def build_ingress(config: ServeConfig) -> FastAPI:
    """Build the web application in the process where Ray Serve runs it.

    Raises:
        InputError: the model file cannot be used, or the token cannot be read.
    """
    # This process may have no GPU. The replicas use their own.
    card = read_model(replace(config, device="cpu"))
    counters = Counters(config.batch_size)
    handle = serve.get_deployment_handle(Replica.__name__, app_name=serve.get_replica_context().app_name)
    engine = DeployedEngine(config, card, counters.note_batch, handle)
    folder = Path(tempfile.mkdtemp(prefix="upfield-serve-"))
    # Ray Serve's configuration decides the host, so accept every host name unless allowed_hosts is set.
    reachable = replace(config, host="0.0.0.0")
    return build_app(
        reachable, engine, model_info(config, card, config.device), counters, read_token(config.token_file), folder
    )
