"""nginx and an S3 server on loopback, with a log of what they send."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 20.0
# nginx writes a line of its log when it has sent the last byte, which the client may have read a moment earlier.
LOG_WAIT_S = 0.02
BUCKET = "sets"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "S3RVER", "AWS_DEFAULT_REGION": "us-east-1"}

# Requests without a body need no room for one, but nginx wants to create these folders. A bucket is a folder, because
# requests name it in their paths. nginx ignores signatures.
CONFIGURATION = """
daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/errors.log; {user}
events {{ worker_connections 1024; }}
http {{
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  log_format sent '$request_method $status $body_bytes_sent $request_uri $http_range';
  access_log {folder}/access.log sent;
  sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/octet-stream;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
  server {{
    listen 127.0.0.1:{s3_port};
    location / {{
      proxy_pass http://127.0.0.1:{s3_server_port}; proxy_set_header Host $http_host; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_buffering off; client_max_body_size 0;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Traffic:
    """What the servers sent between two moments."""

    requests: int
    """Number of requests."""
    sent_bytes: int
    """Number of bytes in the bodies of the answers."""


@dataclass(frozen=True)
class Servers:
    """Running servers, whose `root` folder has one folder for each bucket."""

    root: Path
    """Folder that nginx serves."""
    log: Path
    """nginx's log of requests."""
    http: str
    """URL of nginx. It also answers the requests that S3 clients send to read objects."""
    s3: str
    """URL of the S3 server behind nginx, which counts its bytes."""
    s3_name: str
    """Program that serves S3."""

    def upload(self, folder: Path, prefix: str) -> None:
        """Send all files of a folder to the bucket of the S3 server."""
        client = s3_client(self.s3)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")


class TrafficLog:
    """Reads the lines that were added to nginx's log since the last call."""

    def __init__(self, log: Path) -> None:
        """Begin at the end of the log."""
        self._log = log
        self._read_bytes = log.stat().st_size

    def since_last(self) -> Traffic:
        """Return what the servers have sent since the last call."""
        time.sleep(LOG_WAIT_S)
        with self._log.open("rb") as file:
            file.seek(self._read_bytes)
            added = file.read()
        self._read_bytes += len(added)
        lines = [line.split() for line in added.decode().splitlines()]
        return Traffic(len(lines), sum(int(line[2]) for line in lines if line[0] == "GET"))


def s3_client(url: str) -> Any:
    """Return boto3's client of the S3 server at `url`."""
    import boto3

    return boto3.client("s3", endpoint_url=url)


@contextlib.contextmanager
def run_servers(folder: Path, s3rver: Path | None) -> Iterator[Servers]:
    """Start the servers, and stop them at the end.

    Args:
        folder: folder for all files of the servers; `folder/root` is served.
        s3rver: folder in which `npm install s3rver` was run; by default, moto serves S3.
    """
    root = folder / "root"
    (root / BUCKET).mkdir(parents=True)
    os.environ.update(CREDENTIALS)
    with contextlib.ExitStack() as stack:
        s3_server_port = stack.enter_context(run_s3_server(folder / "s3", s3rver))
        port, s3_port = free_ports(2)
        values = {"port": port, "s3_port": s3_port, "s3_server_port": s3_server_port, "folder": folder, "root": root}
        # As root, nginx would read the files as another user, who may not enter the folder.
        values["user"] = "user root;" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(CONFIGURATION.format(**values), encoding="utf-8")
        command = [nginx_program(), "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors.log")]
        stack.enter_context(run_server([*command, "-p", str(folder)], f"http://127.0.0.1:{port}", signal.SIGTERM))
        urls = (f"http://127.0.0.1:{number}" for number in (port, s3_port))
        s3_client(f"http://127.0.0.1:{s3_port}").create_bucket(Bucket=BUCKET)
        yield Servers(root, folder / "access.log", *urls, "S3, s3rver" if s3rver else "S3, moto")


def nginx_program() -> str:
    """Return the path of nginx, or an empty string. Debian installs it where only root looks for programs."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or ""


@contextlib.contextmanager
def run_s3_server(folder: Path, s3rver: Path | None) -> Iterator[int]:
    """Start s3rver or moto, and yield its port."""
    (port,) = free_ports(1)
    folder.mkdir()
    if s3rver:
        program = [str(s3rver / "node_modules/.bin/s3rver"), "--silent", "--directory", str(folder)]
        command = [*program, "--address", "127.0.0.1", "--port", str(port)]
    else:
        # moto's server is a program beside Python.
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with run_server(command, f"http://127.0.0.1:{port}", signal.SIGINT):
        yield port


@contextlib.contextmanager
def run_server(command: list[str], url: str, end: signal.Signals) -> Iterator[None]:
    """Run a server, wait until it answers at `url`, and end it with the signal `end`."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            until = time.monotonic() + START_S
            while not answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{command[0]} does not answer at {url}. Run it by hand to see why.")
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(end)


def answers(url: str) -> bool:
    """Return whether a server answers at `url`, with whatever status."""
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return different free TCP ports of this machine."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
