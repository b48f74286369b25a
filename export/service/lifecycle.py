"""The service from start to end: socket, replicas, web application."""

import socket
import tempfile
from pathlib import Path

import uvicorn

from upfield.common.progress import say
from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.card import ModelCard
from upfield.export.service.access import read_token
from upfield.export.service.counters import Counters
from upfield.export.service.model_info import model_info, read_model
from upfield.export.service.web_server import begin_to_listen, is_loopback, listen, uvicorn_config
from upfield.export.service.webapp import build_app
from upfield.export.service.work_folder import work_folder

# Ray keeps sockets in its folder, and Unix limits the length of their paths.
SHORT_FOLDER = Path("/tmp")


def run_service(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM; requests that were accepted before are still answered.

    Raises:
        InputError: the model, the address, the token or the cluster cannot be used.
        RunError: Ray or the replicas do not start.
    """
    token = read_token(config.token_file)
    card = read_model(config)
    with listen(config.host, config.port) as listener:
        host, port = listener.getsockname()[:2]
        if token is None and not is_loopback(host):
            say(f"other machines can reach {host}, and no token is set; see token_file in upfield serve --help")
        try:
            answer_requests(config, card, listener, token, f"http://{f'[{host}]' if ':' in host else host}:{port}")
        except KeyboardInterrupt:
            say("ended")


def answer_requests(
    config: ServeConfig, card: ModelCard, listener: socket.socket, token: str | None, address: str
) -> None:
    """Start the replicas, and answer requests until a signal arrives.

    Args:
        config: of the service.
        card: the model's metadata.
        listener: a bound socket.
        token: that requests must carry; None accepts requests without one.
        address: of the service, for the log.

    Raises:
        KeyboardInterrupt: after a signal, once the accepted requests are answered.
    """
    # Importing Ray Serve takes seconds: wrong input is reported before.
    from upfield.export.service.replicas.ray_engine import RayEngine

    counters = Counters(config.batch_size)
    with work_folder(Path(tempfile.gettempdir())) as folder, work_folder(SHORT_FOLDER) as ray_folder:
        engine = RayEngine(config, card, counters.note_batch, ray_folder)
        try:
            app = build_app(config, engine, model_info(config, card, engine.provider), counters, token, folder)
            begin_to_listen(listener, config.idle_timeout_s)
            say(f"{config.model.name} on {engine.provider}: {address}/ and, for programs, /docs; Ctrl-C ends it")
            uvicorn.Server(uvicorn_config(app, config)).run([listener])
        finally:
            engine.stop()
