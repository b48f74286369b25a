"""The life of the service: open the socket, start the replicas, run the web server, and stop everything."""

import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import uvicorn

from upfield.common.environment.settling import short_temporary_folder
from upfield.common.progress import say
from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.card import ModelCard
from upfield.export.pretrained.packaged_model import find_model, model_at
from upfield.export.scans.scan_claim import UNKNOWN_CONTRAST
from upfield.export.service.access import read_token
from upfield.export.service.counters import Counters
from upfield.export.service.environment import set_ray_variables
from upfield.export.service.model_info import model_info, read_model
from upfield.export.service.web_server import begin_to_listen, is_loopback, listen, uvicorn_config
from upfield.export.service.webapp import build_app
from upfield.export.service.work_folder import work_folder


def run_service(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM, then finish the accepted requests and stop.

    Raises:
        InputError: the model, the address, the token or the cluster cannot be used.
        RunError: Ray or the replicas do not start.
    """
    config = replace(config, model=find_model(config.model))
    token = read_token(config.token_file)
    with listen(config.host, config.port) as listener:
        card = read_model(config)
        if model := model_at(config.model):
            say(model.introduction)
        if card.contrasts is None:
            say(f"{config.model.name}: {UNKNOWN_CONTRAST}")
        host, port = listener.getsockname()[:2]
        if token is None and not is_loopback(host):
            say(f"warning: other machines can reach {host}, but no token is set; set one with --token_file")
        try:
            serve_requests(config, card, listener, token, f"http://{f'[{host}]' if ':' in host else host}:{port}")
        except KeyboardInterrupt:
            say("the service has stopped")


def serve_requests(
    config: ServeConfig, card: ModelCard, listener: socket.socket, token: str | None, address: str
) -> None:
    """Start the replicas, and serve requests until a signal arrives.

    Args:
        config: the service's configuration.
        card: the model's metadata.
        listener: a bound socket.
        token: token that requests must carry; None if they need none.
        address: URL of the service, for the log.

    Raises:
        KeyboardInterrupt: a signal arrived, and the accepted requests are finished.
    """
    # Ray is imported only after the input has been checked: the import takes seconds, and its environment variables
    # must not stay set if the input is refused.
    set_ray_variables(has_own_ray=config.address is None)
    from upfield.export.service.replicas.ray_engine import RayEngine

    counters = Counters(config.batch_size)
    with work_folder(Path(tempfile.gettempdir())) as folder, work_folder(short_temporary_folder()) as ray_folder:
        engine = RayEngine(config, card, counters.note_batch, ray_folder)
        try:
            app = build_app(config, engine, model_info(config, card, engine.provider), counters, token, folder)
            begin_to_listen(listener, config.idle_timeout_s)
            say(f"serving {config.model.name} on {engine.provider} at {address}/ (API: /docs); press Ctrl-C to stop")
            uvicorn.Server(uvicorn_config(app, config)).run([listener])
        finally:
            engine.stop()
