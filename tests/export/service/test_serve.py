"""The real command: replicas on Ray Serve, responses equal to `upfield enhance`, signals, lost replicas."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from serving import TIMEOUT_S, Response, ask, metric, send, send_form, wait_until, write_scan

from upfield.export import enhance
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.serve import main

SCRIPT = Path(enhance.__file__).parent / "serve.py"
START_S = 180
BATCH = 4
# Slices of two grids cannot share batches. 19 and 17 slices leave room in the last batch for other scans.
SHAPES = [(12, 14, 6)] * 4 + [(11, 12, 7)] * 2


@dataclass
class ServiceProcess:
    """The service, running in its own processes."""

    process: subprocess.Popen
    port: int
    said: list[str]

    def replicas(self) -> list[psutil.Process]:
        """Return the replicas' processes, recognised by the name that Ray sets."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in children if "ServeReplica" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def service(tiny_model: Path) -> Iterator[ServiceProcess]:
    """The real command, on a free port."""
    command = [sys.executable, str(SCRIPT), str(tiny_model), "--port", "0", "--batch_size", str(BATCH)]
    # The service must use this machine, even if RAY_ADDRESS names a cluster.
    environment = {**os.environ, "RAY_ADDRESS": "10.255.255.1:6379", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
    reader.start()
    family = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + START_S
        while not (ready := re.search(r"http://127\.0\.0\.1:(\d+)/", "".join(said))):
            assert process.poll() is None, "".join(said)
            assert time.monotonic() < deadline, "".join(said)
            time.sleep(0.1)
        yield ServiceProcess(process, int(ready[1]), said)
    finally:
        children = family.children(recursive=True) if family.is_running() else []
        process.terminate()
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:
            if child.is_running():
                child.kill()
        reader.join(10)
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scans")
    return [write_scan(folder / f"scan{seed}.nii.gz", seed, shape) for seed, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def enhanced(tiny_model: Path, scans: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The bytes that `upfield enhance` writes for each scan."""
    out = tmp_path_factory.mktemp("enhanced")
    code = enhance.main([str(tiny_model), *map(str, scans), "--out", str(out), "--batch_size", str(BATCH)])
    assert code == 0
    return [(out / scan.name).read_bytes() for scan in scans]


def send_all(port: int, scans: list[Path]) -> list[Response]:
    with ThreadPoolExecutor(len(scans)) as senders:
        return list(senders.map(lambda scan: send(port, scan), scans))


def test_responses_are_the_files_that_enhance_writes(
    service: ServiceProcess, scans: list[Path], enhanced: list[bytes], tmp_path: Path
) -> None:
    assert send(service.port, scans[0]).body == enhanced[0]
    assert send(service.port, scans[0].read_bytes()).body == enhanced[0]
    response = send_form(service.port, "a name.nii.gz", scans[5].read_bytes())
    assert response.body == enhanced[5]
    assert response.headers["content-type"] == "application/gzip"
    assert 'filename="a name_enhanced.nii.gz"' in response.headers["content-disposition"]
    both = send_form(service.port, "s.nii.gz", scans[0].read_bytes(), {"Accept": "multipart/form-data"})
    assert both.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert enhanced[0] in both.body
    assert both.body.count(b"\x1f\x8b\x08") >= 2


def test_concurrent_scans_get_the_same_responses_and_are_counted(
    service: ServiceProcess, scans: list[Path], enhanced: list[bytes]
) -> None:
    assert [response.body for response in send_all(service.port, scans)] == enhanced
    batches, scans_in_them = (metric(service.port, f"upfield_batch_scans_{part}") for part in ("count", "sum"))
    assert scans_in_them >= batches
    slices = metric(service.port, "upfield_slices_restored_total")
    assert slices == metric(service.port, "upfield_batch_slices_sum")
    assert batches * BATCH >= slices >= 4 * 19 + 2 * 17


def test_the_service_describes_itself_and_its_model(service: ServiceProcess, tiny_model: Path) -> None:
    assert json.loads(ask(service.port, "/health").body) == {"status": "alive"}
    assert json.loads(ask(service.port, "/ready").body) == {"status": "ready"}
    model = json.loads(ask(service.port, "/model").body)
    assert model["file"] == tiny_model.name
    assert model["provider"] == "CPUExecutionProvider"
    assert model["data_sha256"] == OnnxRestorer(tiny_model, "cpu").card.tree["data_sha256"]
    assert str(tiny_model.parent) not in json.dumps(model)
    schema = json.loads(ask(service.port, "/openapi.json").body)
    documented = {"/enhance", "/progress/{id}", "/health", "/ready", "/metrics", "/model"}
    assert set(schema["paths"]) == documented
    assert set(schema["paths"]["/enhance"]["post"]["requestBody"]["content"]) == {
        "application/octet-stream",
        "multipart/form-data",
    }
    docs = ask(service.port, "/docs").body.decode()
    assert all(path in docs for path in documented)
    assert (
        'upfield_requests_total{method="GET",path="/model",status="200"}' in ask(service.port, "/metrics").body.decode()
    )


def test_a_replica_that_is_killed_is_replaced_and_nothing_is_lost(
    service: ServiceProcess, scans: list[Path], enhanced: list[bytes]
) -> None:
    (replica,) = service.replicas()
    responses: list[Response] = []
    # The queue has places for 20.
    sender = threading.Thread(target=lambda: responses.extend(send_all(service.port, scans * 3)))
    before = metric(service.port, "upfield_slices_restored_total")
    sender.start()
    wait_until(lambda: metric(service.port, "upfield_slices_restored_total") > before)
    replica.kill()
    sender.join(TIMEOUT_S)
    assert [response.status for response in responses] == [200] * 3 * len(scans)
    assert [response.body for response in responses] == enhanced * 3
    wait_until(lambda: ask(service.port, "/ready").status == 200)
    assert send(service.port, scans[0]).body == enhanced[0]
    assert [process.pid for process in service.replicas()] != [replica.pid]


def test_after_a_signal_admitted_scans_are_finished_and_every_process_ends(
    service: ServiceProcess, scans: list[Path], enhanced: list[bytes]
) -> None:
    family = psutil.Process(service.process.pid).children(recursive=True)
    responses: list[Response] = []
    sender = threading.Thread(target=lambda: responses.extend(send_all(service.port, scans)))
    sender.start()
    wait_until(lambda: metric(service.port, "upfield_scans") >= 4)
    # Like Ctrl-C, which sends the signal to every process of the terminal's group.
    os.killpg(service.process.pid, signal.SIGINT)
    sender.join(TIMEOUT_S)
    assert service.process.wait(TIMEOUT_S) == 0
    assert [response.body for response in responses] == enhanced
    wait_until(lambda: not any(process.is_running() for process in family))
    assert not [line for line in service.said if "Traceback" in line]


def test_sigterm_ends_the_service_with_exit_code_0(tiny_model: Path) -> None:
    program = """
import sys, types
class RayEngine:
    batch_size, context, provider = 4, 0, "none"
    def __init__(self, *_): pass
    def stop(self): print("stopped", file=sys.stderr)
# Starting Ray takes most of the time, and this test does not need it.
sys.modules["upfield.export.service.replicas.ray_engine"] = types.SimpleNamespace(RayEngine=RayEngine)
from upfield.export.serve import main
sys.exit(main([sys.argv[1], "--port", "0"]))
"""
    command = [sys.executable, "-c", program, str(tiny_model)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            urls = (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in process.stderr)
            url = next(filter(None, urls))
            wait_until(lambda: ask(int(url[1]), "/health").status == 200)
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
            assert process.stderr.read() == "stopped\nthe service has stopped\n"
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.onnx"], "nowhere.onnx: there is no such file"),
        (["MODEL", "--port", "TAKEN"], "is taken. Choose another --port"),
        (["MODEL", "--host", "203.0.113.7"], "is not an address of this machine"),
        (["MODEL", "--device", "cuda"], "cuda needs an NVIDIA GPU"),
        (["MODEL", "--token_file", "nowhere"], "token_file nowhere: cannot read the token"),
        (
            ["MODEL", "--address", "127.0.0.1:1"],
            "--address: cannot connect to a Ray cluster at 127.0.0.1:1: nothing listens there",
        ),
        (["MODEL", "--scans_at_once", "0"], "scans_at_once: expected at least 1, found 0"),
        (["MODEL", "--max_replicas", "0"], "max_replicas: expected at least replicas"),
        (["MODEL", "--port", "70000"], "expected at most 65535"),
    ],
)
def test_bad_input_is_refused(
    tiny_model: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, warnings.catch_warnings():
        # Importing Ray Serve causes pydantic warnings.
        warnings.simplefilter("ignore")
        places = {"MODEL": tiny_model, "TAKEN": taken.getsockname()[1]}
        given = [str(places.get(argument, argument)) for argument in arguments]
        given += [] if "--port" in given else ["--port", "0"]
        code, _, said = run_cli(main, *given)
    assert code == 2, said
    assert message in said
    assert "Traceback" not in said


def test_help_lists_the_flags_and_never_takes_a_token(run_cli: Callable) -> None:
    code, out, _ = run_cli(main, "--help")
    assert code == 0
    for flag in (
        "--max_queue",
        "--timeout_s",
        "--max_body_bytes",
        "--max_decompressed_bytes",
        "--token_file",
        "--address",
    ):
        assert flag in out
    assert "--token " not in out
