"""The application of the RayService file, started on a CPU by Ray Serve's `serve run` with the file's arguments."""

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from commandlines import CLUSTER, installed

from upfield.distributed.launch import free_port

pytestmark = pytest.mark.slow
START_S = 240


def test_ray_serve_serves_the_application_of_the_file(tiny_model: Path, tmp_path: Path) -> None:
    documents = yaml.safe_load_all((CLUSTER / "k8s" / "serve.yaml").read_text())
    (service,) = (document for document in documents if document["kind"] == "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    overrides = {"model": str(tiny_model), "device": "cpu", "max_replicas": 1, "cores_per_replica": 1}
    config["applications"][0]["args"] |= overrides
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "RAY_ADDRESS": "local", "UPFIELD_TOKEN": "word", "RAY_USAGE_STATS_ENABLED": "0"}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen([installed("serve"), "run", file], env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            assert get_json(port, "/ready", process) == {"status": "ready"}, (tmp_path / "log").read_text()
            # The secret provides the token as an environment variable, and the service requires it.
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/model", timeout=10)
            assert get_json(port, "/model", process)["file"] == tiny_model.name
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def get_json(port: int, path: str, process: "subprocess.Popen[bytes]") -> dict:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": "Bearer word"})
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)
        time.sleep(1)
    return {}
