"""The service as it is started: replicas on Ray Serve, answers equal to `upfield enhance`, ends and losses."""

import contextlib
import errno
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
from typing import Any

import psutil
import pytest
from serving import TIMEOUT_S, Answer, ask, metric, send, send_form, wait_until, write_scan

from upfield.common.errors import InputError
from upfield.export import enhance
from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.serve import main
from upfield.export.service import work_folder as workfolder
from upfield.export.service.access import read_token
from upfield.export.service.web_server import begin_to_listen, is_loopback, listen
from upfield.export.service.work_folder import PREFIX, work_folder

SCRIPT = Path(enhance.__file__).parent / "serve.py"
START_S = 180
BATCH = 4
# Two grids, so that not all slices can share batches; 19 and 17 slices, so that batches have room for others'.
SHAPES = [(12, 14, 6)] * 4 + [(11, 12, 7)] * 2


@dataclass
class Started:
    """The service in processes of its own."""

    process: subprocess.Popen
    port: int
    said: list[str]

    def replicas(self) -> list[psutil.Process]:
        """The processes that restore slices; Ray names them."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if "ServeReplica" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def service(tiny_model: Path) -> Iterator[Started]:
    """The real command, on a free port."""
    command = [sys.executable, str(SCRIPT), str(tiny_model), "--port", "0", "--batch_size", str(BATCH)]
    # Whatever the surroundings say, it stays on this machine.
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
        yield Started(process, int(ready[1]), said)
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
    """What `upfield enhance` writes for each scan."""
    out = tmp_path_factory.mktemp("enhanced")
    code = enhance.main([str(tiny_model), *map(str, scans), "--out", str(out), "--batch_size", str(BATCH)])
    assert code == 0
    return [(out / scan.name).read_bytes() for scan in scans]


def send_all(port: int, scans: list[Path]) -> list[Answer]:
    with ThreadPoolExecutor(len(scans)) as senders:
        return list(senders.map(lambda scan: send(port, scan), scans))


def test_answers_are_the_files_that_enhance_writes(
    service: Started, scans: list[Path], enhanced: list[bytes], tmp_path: Path
) -> None:
    assert send(service.port, scans[0]).body == enhanced[0]
    assert send(service.port, scans[0].read_bytes()).body == enhanced[0]
    answer = send_form(service.port, "a name.nii.gz", scans[5].read_bytes())
    assert answer.body == enhanced[5]
    assert answer.headers["content-type"] == "application/gzip"
    assert 'filename="a name_enhanced.nii.gz"' in answer.headers["content-disposition"]
    both = send_form(service.port, "s.nii.gz", scans[0].read_bytes(), {"Accept": "multipart/form-data"})
    assert both.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert enhanced[0] in both.body
    assert both.body.count(b"\x1f\x8b\x08") >= 2


def test_scans_at_the_same_time_get_the_same_answers_and_are_counted(
    service: Started, scans: list[Path], enhanced: list[bytes]
) -> None:
    assert [answer.body for answer in send_all(service.port, scans)] == enhanced
    batches, scans_in_them = (metric(service.port, f"upfield_batch_scans_{part}") for part in ("count", "sum"))
    assert scans_in_them >= batches
    slices = metric(service.port, "upfield_slices_restored_total")
    assert slices == metric(service.port, "upfield_batch_slices_sum")
    assert batches * BATCH >= slices >= 4 * 19 + 2 * 17


def test_it_says_what_it_is_and_how_it_is(service: Started, tiny_model: Path) -> None:
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
    service: Started, scans: list[Path], enhanced: list[bytes]
) -> None:
    (replica,) = service.replicas()
    answers: list[Answer] = []
    # The queue has places for 20.
    sender = threading.Thread(target=lambda: answers.extend(send_all(service.port, scans * 3)))
    before = metric(service.port, "upfield_slices_restored_total")
    sender.start()
    wait_until(lambda: metric(service.port, "upfield_slices_restored_total") > before)
    replica.kill()
    sender.join(TIMEOUT_S)
    assert [answer.status for answer in answers] == [200] * 3 * len(scans)
    assert [answer.body for answer in answers] == enhanced * 3
    wait_until(lambda: ask(service.port, "/ready").status == 200)
    assert send(service.port, scans[0]).body == enhanced[0]
    assert [process.pid for process in service.replicas()] != [replica.pid]


def test_a_signal_lets_what_is_at_work_be_answered_and_ends_everything(
    service: Started, scans: list[Path], enhanced: list[bytes]
) -> None:
    family = psutil.Process(service.process.pid).children(recursive=True)
    answers: list[Answer] = []
    sender = threading.Thread(target=lambda: answers.extend(send_all(service.port, scans)))
    sender.start()
    wait_until(lambda: metric(service.port, "upfield_scans") >= 4)
    # As Ctrl-C does it: every process of the terminal's group gets the signal.
    os.killpg(service.process.pid, signal.SIGINT)
    sender.join(TIMEOUT_S)
    assert service.process.wait(TIMEOUT_S) == 0
    assert [answer.body for answer in answers] == enhanced
    wait_until(lambda: not any(process.is_running() for process in family))
    assert not [line for line in service.said if "Traceback" in line]


def test_sigterm_ends_it_with_0(tiny_model: Path) -> None:
    program = """
import sys, types
class RayEngine:
    batch_size, context, provider = 4, 0, "none"
    def __init__(self, *_): pass
    def stop(self): print("stopped", file=sys.stderr)
# Ray takes most of the time that a start takes, and has no part in this.
sys.modules["upfield.export.service.replicas.ray_engine"] = types.SimpleNamespace(RayEngine=RayEngine)
from upfield.export.serve import main
sys.exit(main([sys.argv[1], "--port", "0"]))
"""
    command = [sys.executable, "-c", program, str(tiny_model)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stderr.readline())
            assert found is not None
            wait_until(lambda: ask(int(found[1]), "/health").status == 200)
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
            assert process.stderr.read() == "stopped\nended\n"
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
        # Ray Serve's own, of pydantic.
        warnings.simplefilter("ignore")
        places = {"MODEL": tiny_model, "TAKEN": taken.getsockname()[1]}
        given = [str(places.get(argument, argument)) for argument in arguments]
        given += [] if "--port" in given else ["--port", "0"]
        code, _, said = run_cli(main, *given)
    assert code == 2, said
    assert message in said
    assert "Traceback" not in said


def test_of_two_starts_on_one_port_the_second_is_refused_in_words() -> None:
    with listen("127.0.0.1", 0) as first, listen("127.0.0.1", first.getsockname()[1]) as second:
        begin_to_listen(first, 30)
        with pytest.raises(InputError, match=r"port: port \d+ is taken"):
            begin_to_listen(second, 30)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such limit")
def test_the_system_gives_up_what_a_client_does_not_take() -> None:
    with listen("127.0.0.1", 0) as listener:
        begin_to_listen(listener, 0.2)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            accepted.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    accepted.send(bytes(2**20))
            wait_until(lambda: accepted.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 2, "max_replicas": 5}, "max_replicas: expected at most scans_at_once"),
        ({"gpus_per_replica": 1.5}, "gpus_per_replica: expected a whole number, or a share below 1, found 1.5"),
        ({"gpus_per_replica": float("inf")}, "gpus_per_replica: expected a whole number"),
        ({"timeout_s": float("inf")}, "timeout_s: expected a finite number of seconds"),
        ({"allowed_hosts": ["*.example"]}, r"allowed_hosts: \*\.example contains a wildcard"),
        ({"idle_timeout_s": 0}, "idle_timeout_s: expected at least 0.1"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeConfig(Path("model.onnx"), **options)


def test_scans_that_are_worked_on_have_strips_for_as_many_replicas(quiet_ray: None) -> None:
    from upfield.export.service.replicas.replica import replica_deployment
    from upfield.export.service.scan_requests.enhancement import STRIPS_IN_FLIGHT

    config = ServeConfig(model=Path("model.onnx"), replicas=2, max_replicas=8, scans_at_once=8)
    deployment = replica_deployment(config, 1, 0.0)._bound_deployment
    target = deployment._deployment_config.autoscaling_config.target_ongoing_requests
    assert config.scans_at_once * STRIPS_IN_FLIGHT >= 8 * target
    assert deployment.init_args[0] == str(Path.cwd() / "model.onnx")


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPFIELD_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("UPFIELD_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    assert read_token(file) == "from-a-file"
    for empty in ("", " \n", "two words", "\u00e9"):
        file.write_text(empty)
        with pytest.raises(InputError, match=r"token_file .*(must be one word|cannot read the token)"):
            read_token(file)


@pytest.fixture
def quiet_ray() -> None:
    """Ray Serve, imported without its own warnings, of pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import upfield.export.service.replicas.replica  # noqa: F401


def node(cores: int, gpus: int = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cores), "GPU": float(gpus)}}


@pytest.mark.parametrize(
    ("options", "nodes", "expected"),
    [
        ({"cores_per_replica": 2}, [node(4)], (2, 0.0)),
        ({"cores_per_replica": 2, "replicas": 3}, [node(3), node(4)], (2, 0.0)),
        ({"cores_per_replica": 2, "replicas": 3}, [node(3), node(3)], None),
        ({"cores_per_replica": 2}, [node(8, alive=False), node(1)], None),
        ({"address": "auto"}, [node(4)], (1, 0.0)),
        ({"cores_per_replica": 1, "gpus_per_replica": 0.5, "replicas": 2}, [node(4, 1)], (1, 0.5)),
        ({"cores_per_replica": 1, "replicas": 2}, [node(4, 1)], None),
        ({"cores_per_replica": 1, "gpus_per_replica": 0.2, "replicas": 5}, [node(8, 1)], (1, 0.2)),
        ({"cores_per_replica": 1, "gpus_per_replica": 0.1, "replicas": 10}, [node(16, 1)], (1, 0.1)),
        ({"cores_per_replica": 1, "gpus_per_replica": 0.3, "replicas": 4}, [node(8, 1)], None),
        ({"cores_per_replica": 1, "replicas": 2, "device": "cpu"}, [node(4, 1)], (1, 0.0)),
    ],
)
def test_replicas_that_would_never_start_are_refused(
    quiet_ray: None, options: dict[str, Any], nodes: list[dict[str, Any]], expected: tuple[int, float] | None
) -> None:
    from upfield.export.service.replicas.replica import replica_resources

    if expected is None:
        with pytest.raises(InputError, match="replicas: there is room for"):
            replica_resources(ServeConfig(Path("model.onnx"), **options), nodes)
    else:
        assert replica_resources(ServeConfig(Path("model.onnx"), **options), nodes) == expected


def test_only_loopback_addresses_are_this_machines_own() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "0.0.0.0", "::", "192.0.2.2")] == [True, True] + [
        False
    ] * 3


def test_the_schema_of_the_command_is_its_help(run_cli: Callable) -> None:
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


def test_folders_of_killed_services_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    with work_folder(tmp_path) as living:
        (living / "scan.nii").touch()
        assert living.stat().st_mode & 0o077 == 0
        program = (
            "import os, pathlib, sys; from upfield.export.service.work_folder import PREFIX, work_folder\n"
            "with work_folder(pathlib.Path(sys.argv[1])) as folder: (folder / 'scan.nii').touch(); os._exit(9)"
        )
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=TIMEOUT_S, check=False)
        assert len(list(tmp_path.iterdir())) == 2
        with work_folder(tmp_path) as other:
            assert set(tmp_path.iterdir()) == {living, other}
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_folders_of_dead_services_of_this_user_is_removed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    names = ("new", "old", "linked", "pipe", "dead")
    new, old, linked, pipe, dead = folders = [tmp_path / f"{PREFIX}{name}" for name in names]
    for folder in folders:
        folder.mkdir()
    (linked / "lock").symlink_to(elsewhere / "lock")
    os.mkfifo(pipe / "lock")
    (dead / "lock").touch()
    os.utime(old, (0, 0))
    with work_folder(tmp_path) as living:
        expected = {elsewhere, tmp_path / f"{PREFIX}link", new, linked, pipe, living}
        assert set(tmp_path.iterdir()) == expected
    assert (elsewhere / "lock").exists()


def test_a_folder_that_another_start_is_removing_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(workfolder, "_try_lock", lambda lock: next(answers))
    with work_folder(tmp_path) as folder:
        assert len(list(tmp_path.iterdir())) == 2
        assert folder.exists()
