"""The service refuses what it should, in the command line's words, and leaves nothing behind."""

import asyncio
import http.client
import json
import re
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from serving import Service, ask, gzip_bomb, metric, running, send, send_form, wait_until, write_scan

from upfield.export import enhance
from upfield.export.configuration import ServeConfig
from upfield.export.service.access import accepted_hosts
from upfield.export.service.counters import Counters
from upfield.export.service.errors import EngineError
from upfield.export.service.middleware import RequestMiddleware
from upfield.export.service.scan_requests.admission import AdmissionQueue
from upfield.export.service.scan_requests.enhancement import in_thread
from upfield.export.service.scan_requests.scan_request import EnhancedFiles, RequestProgress, ScanRequest
from upfield.export.service.scan_requests.scan_response import ScanResponse
from upfield.export.service.scan_requests.upload import clean_name

TOKEN = "a-token"
BAD = ("4-D", "NaN", "constant", "small", "cut off", "empty", "text", "text named gzip", "another kind")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz")


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with limits that small files reach."""
    limits: dict[str, Any] = {"max_body_bytes": 200_000, "max_decompressed_bytes": 1_000_000, "max_voxels": 50_000}
    with running(tiny_model, tmp_path_factory.mktemp("work") / "w", scans_at_once=1, max_queue=1, **limits) as started:
        yield started


def bad_files(folder: Path) -> dict[str, Path]:
    """One file for each way of being no scan."""
    voxels = np.random.default_rng(0).random((12, 14, 6), np.float32)
    whole = write_scan(folder / "whole.nii.gz").read_bytes()
    with_nan = voxels.copy()
    with_nan[2, 3, 4] = np.nan
    files = {
        "4-D": write_scan(folder / "series.nii.gz", shape=(12, 14, 6, 3)),
        "NaN": write_scan(folder / "nan.nii", voxels=with_nan),
        "constant": write_scan(folder / "flat.nii.gz", voxels=np.ones_like(voxels)),
        "small": write_scan(folder / "small.nii.gz", shape=(3, 3, 1)),
        "cut off": folder / "cut.nii.gz",
        "empty": folder / "empty.nii.gz",
        "text": folder / "text.nii",
        "text named gzip": folder / "text.nii.gz",
        "another kind": folder / "scan.dcm",
    }
    files["cut off"].write_bytes(whole[: len(whole) // 2])
    files["empty"].write_bytes(b"")
    files["text"].write_text("no scan, and not a short one either\n" * 40)
    files["text named gzip"].write_text("no scan\n")
    files["another kind"].write_bytes(whole)
    return files


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_scan_is_refused_in_the_words_of_the_command_line(
    service: Service, tiny_model: Path, tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = bad_files(tmp_path)[kind]
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli(enhance.main, tiny_model, file.name, "--out", "out")
    assert code == 2
    said = err.splitlines()[-1].removeprefix("upfield enhance: error: ")
    for answer in (send(service.port, file), send_form(service.port, file.name, file.read_bytes())):
        assert answer.status == 422
        assert answer.error == said
        assert str(tmp_path) not in answer.error
    assert list(service.folder.iterdir()) == []


@pytest.mark.parametrize("way", ["announced", "in pieces", "form"])
def test_a_body_that_is_too_long_is_cut_off(service: Service, way: str) -> None:
    body = bytes(400_000)
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    answer = (
        send_form(service.port, "a.nii", body)
        if way == "form"
        else ask(service.port, "/enhance", "POST", body if way == "announced" else pieces)
    )
    assert answer.status == 413
    assert answer.error.startswith("expected at most 200000 bytes, found")
    assert list(service.folder.iterdir()) == []


def test_who_asks_before_sending_too_much_sends_nothing(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(
            b"POST /enhance HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_gzip_bomb_is_refused_without_being_expanded(service: Service) -> None:
    bomb = gzip_bomb(150_000_000)
    assert len(bomb) < 200_000
    tracemalloc.start()
    answer = send_form(service.port, "bomb.nii.gz", bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status == 413
    assert answer.error == "bomb.nii.gz: expected at most 1000000 bytes without compression, found more. Crop the scan."
    assert peak < 20_000_000


@pytest.mark.parametrize(("shape", "zooms"), [((40, 40, 40), (1, 1, 1)), ((10, 10, 10), (9, 9, 9))])
def test_too_many_voxels_are_refused_by_the_header_alone(
    service: Service, shape: tuple[int, int, int], zooms: tuple[int, int, int]
) -> None:
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag((*zooms, 1)))
    # Only the header is there: reading voxels would be refused with other words.
    answer = send_form(service.port, "large.nii", image.to_bytes()[:352])
    assert answer.status == 413
    assert "expected at most 50000 voxels" in answer.error


def test_a_form_without_a_file_is_refused(service: Service) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    nothing = b'--x\r\nContent-Disposition: form-data; name="scan"\r\n\r\nwords\r\n--x--\r\n'
    assert ask(service.port, "/enhance", "POST", nothing, form).status == 422
    assert ask(service.port, "/enhance", "POST", b"no form", form).status in (400, 422)
    assert ask(service.port, "/enhance?id=me", "POST", nothing, form).status == 400


def test_the_name_of_a_file_is_only_shown(service: Service, scan: Path) -> None:
    answer = send_form(service.port, "../../etc/ev\\il\u202e.nii.gz", scan.read_bytes())
    assert answer.status == 200
    shown = answer.headers["content-disposition"]
    assert re.fullmatch(r"attachment; filename=\"[A-Za-z0-9._ -]+\"; filename\*=UTF-8''[A-Za-z0-9._%-]+", shown)
    assert "il_enhanced.nii.gz" in shown
    assert "etc" not in shown
    assert clean_name("a\r\nSet-Cookie: x.nii") == "aSet-Cookie: x.nii"
    assert clean_name("///") == ""
    assert len(clean_name("n" * 5000 + ".nii.gz")) <= 120


def test_one_scan_more_than_there_are_places_is_told_when_to_come_again(service: Service, scan: Path) -> None:
    service.engine.gate.clear()
    answers = []
    senders = [threading.Thread(target=lambda: answers.append(send(service.port, scan))) for _ in range(2)]
    for number, sender in enumerate(senders):
        sender.start()
        wait_until(lambda number=number: metric(service.port, "upfield_scans") == number + 1)
    wait_until(lambda: metric(service.port, "upfield_queue_length") == 1)
    refused = send(service.port, scan)
    service.engine.gate.set()
    for sender in senders:
        sender.join(60)
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "already has 2 scans, its limit" in refused.error
    assert [answer.status for answer in answers] == [200, 200]
    wait_until(lambda: metric(service.port, "upfield_scans") == 0)


def test_progress_is_told_while_a_scan_is_enhanced(service: Service, scan: Path) -> None:
    service.engine.gate.clear()
    number, other = "0" * 31 + "1", "0" * 31 + "2"
    senders = [threading.Thread(target=send, args=(service.port, scan.read_bytes(), f"/enhance?id={number}"))]
    senders.append(threading.Thread(target=send, args=(service.port, scan.read_bytes(), f"/enhance?id={other}")))

    def told(which: str) -> dict[str, object]:
        return json.loads(ask(service.port, f"/progress/{which}").body)

    senders[0].start()
    wait_until(lambda: told(number).get("state") == "restoring")
    senders[1].start()
    wait_until(lambda: told(other).get("state") == "waiting")
    assert told(number) == {"state": "restoring", "position": 0, "slices_done": 0, "num_slices": 19}
    assert told(other)["position"] == 1
    service.engine.gate.set()
    for sender in senders:
        sender.join(60)
    assert ask(service.port, f"/progress/{number}").status == 404


def test_a_client_that_goes_away_leaves_nothing_behind(service: Service, scan: Path) -> None:
    service.engine.gate.clear()
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.request("POST", "/enhance", scan.read_bytes())
    wait_until(lambda: metric(service.port, "upfield_scans") == 1)
    wait_until(lambda: list(service.folder.iterdir()))
    connection.close()
    wait_until(lambda: metric(service.port, "upfield_scans") == 0)
    assert list(service.folder.iterdir()) == []
    service.engine.gate.set()
    with socket.create_connection(("127.0.0.1", service.port)) as half:
        half.sendall(b"POST /enhance HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nonly this much")
        wait_until(lambda: list(service.folder.iterdir()))
    wait_until(lambda: not list(service.folder.iterdir()))


def test_a_mistake_of_the_service_is_told_without_where_it_was(
    service: Service, scan: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for error, status in ((KeyError("/secret/path"), 500), (EngineError("/secret/replica died"), 503)):
        service.engine.error = error
        try:
            answer = send(service.port, scan)
        finally:
            service.engine.error = None
        assert answer.status == status
        assert "secret" not in answer.error
        assert "Traceback" not in answer.body.decode()
        logged = capfd.readouterr().err
        assert answer.headers["x-request-id"] in logged
        assert "/secret/" in logged
    assert send(service.port, scan).status == 200


def test_unknown_addresses_are_answered_in_words(service: Service) -> None:
    for path, method, status in (("/nowhere", "GET", 404), ("/page/../serve.py", "GET", 404), ("/enhance", "GET", 405)):
        answer = ask(service.port, path, method)
        assert answer.status == status
        assert answer.error
        assert answer.headers.get("allow") == ("POST" if status == 405 else None)


def test_a_name_without_a_last_part_is_none(service: Service, scan: Path) -> None:
    answer = send(service.port, scan.read_bytes(), "/enhance?name=///")
    assert answer.status == 200
    assert 'filename="scan_enhanced.nii.gz"' in answer.headers["content-disposition"]


def test_a_form_is_known_in_any_case(service: Service, scan: Path) -> None:
    sent = send_form(service.port, "a.NII.GZ", scan.read_bytes(), {"Content-Type": "Multipart/Form-Data; boundary=b"})
    assert sent.status == 400
    assert "not a form with one file" in sent.error


def test_every_answer_carries_what_protects_a_browser(service: Service) -> None:
    for path in ("/", "/docs", "/health", "/nowhere"):
        headers = ask(service.port, path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_another_sites_page_may_not_send_scans(service: Service, scan: Path) -> None:
    answer = send(service.port, scan, headers={"Origin": "http://elsewhere.example"})
    assert answer.status == 403
    assert send(service.port, scan, headers={"Origin": f"http://127.0.0.1:{service.port}"}).status == 200
    # Behind a proxy the names differ, and the browser's word counts.
    behind = {"Origin": "https://upfield.example", "Sec-Fetch-Site": "same-origin"}
    assert send(service.port, scan, headers=behind).status == 200
    assert send(service.port, scan, headers=behind | {"Sec-Fetch-Site": "cross-site"}).status == 403


def test_nothing_on_the_pages_comes_from_elsewhere(service: Service) -> None:
    for path in ("/", "/docs", "/page/page.css", "/page/page.js", "/page/viewer.js"):
        answer = ask(service.port, path)
        assert answer.status == 200
        assert not re.search(rb"https?://|src=['\"]?//|@import", answer.body)


def test_without_the_token_only_what_holds_nothing_is_told(tiny_model: Path, tmp_path: Path, scan: Path) -> None:
    with running(tiny_model, tmp_path / "w", token=TOKEN) as service:
        for path in ("/", "/health", "/ready", "/docs", "/openapi.json", "/page/page.js"):
            assert ask(service.port, path).status == 200
        for path in ("/model", "/metrics", "/progress/x"):
            answer = ask(service.port, path)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer ", "Bearer \xe9"):
            assert send(service.port, scan, headers={"Authorization": given}).status == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert send(service.port, scan, headers=right).status == 200
        assert ask(service.port, "/model", headers=right).status == 200


def test_a_request_that_takes_too_long_is_given_up(tiny_model: Path, tmp_path: Path, scan: Path) -> None:
    with running(tiny_model, tmp_path / "w", timeout_s=0.5) as service:
        service.engine.gate.clear()
        answer = send(service.port, scan)
        assert answer.status == 504
        assert answer.error == "The scan was not done within 0.5 s; it was still restoring."
        assert list(service.folder.iterdir()) == []


def test_ready_says_whether_slices_would_be_restored(service: Service) -> None:
    assert ask(service.port, "/ready").status == 200
    service.engine.ready = False
    answer = ask(service.port, "/ready")
    service.engine.ready = True
    assert answer.status == 503
    assert "retry-after" in answer.headers
    assert ask(service.port, "/health").status == 200


def test_a_request_with_endless_headers_is_cut_off_before_anything_is_asked(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.fixture(scope="module")
def impatient(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with little patience, and a single place."""
    with running(
        tiny_model, tmp_path_factory.mktemp("work") / "w", scans_at_once=1, max_queue=0, idle_timeout_s=0.3
    ) as started:
        yield started


def test_a_client_that_stops_sending_loses_its_place(impatient: Service, scan: Path) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=30) as connection:
        connection.sendall(b"POST /enhance HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nonly this")
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"The upload paused for more than 0.3 s. Send the scan again." in answer
    assert list(impatient.folder.iterdir()) == []
    wait_until(lambda: send(impatient.port, scan).status == 200)


def pass_through(app: Any, idle_timeout_s: float, send: Any) -> None:
    """Send one request through the middleware to an application."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    asyncio.run(RequestMiddleware(app, idle_timeout_s, Counters(1))(scope, receive, send))


@pytest.mark.parametrize("is_read", [True, False])
def test_what_a_request_holds_is_let_go_once_its_answer_is_taken_or_is_not(tmp_path: Path, is_read: bool) -> None:
    file = (tmp_path / "enhanced.nii.gz").open("w+b")
    sent: list[str] = []

    file.write(b"all of it")
    file.seek(0)
    request = ScanRequest(id="", log_id="", wants_before=False, deadline_s=0, folder=tmp_path)
    request.resources.enter_context(file)
    app = ScanResponse(request, EnhancedFiles(file))

    async def send(message: dict[str, Any]) -> None:
        assert not file.closed
        if message["type"] == "http.response.body" and not is_read:
            await asyncio.sleep(60)
        sent.append(message["type"])

    pass_through(app, 0.1, send)
    assert file.closed
    assert sent == ["http.response.start", "http.response.body", "http.response.body"][: 3 if is_read else 1]


def test_on_this_machine_only_its_own_names_are_answered(service: Service) -> None:
    for name in ("localhost", "127.0.0.1:80", "[::1]", "[::1]:8000", "LOCALHOST:1"):
        assert ask(service.port, "/health", headers={"Host": name}).status == 200
    for name in ("elsewhere.example", "elsewhere.example:8000", "localhost.example", ""):
        answer = ask(service.port, "/", headers={"Host": name})
        assert answer.status == 421
        assert "allowed_hosts" in answer.error


def test_a_proxys_names_are_answered_where_they_are_allowed() -> None:
    named = accepted_hosts(ServeConfig(Path("model.onnx"), allowed_hosts=["Upfield.example"]))
    assert {"Upfield.example", "localhost"} <= set(named)
    assert accepted_hosts(ServeConfig(Path("model.onnx"), host="0.0.0.0")) == ["*"]
    assert set(accepted_hosts(ServeConfig(Path("model.onnx"), host="0.0.0.0", allowed_hosts=["a.example"]))) == {
        "a.example",
        "0.0.0.0",
        "127.0.0.1",
        "localhost",
        "[::1]",
    }


def test_each_waiting_scan_is_told_its_own_position() -> None:
    async def run() -> None:
        queue, scans = AdmissionQueue(1, 3), [RequestProgress() for _ in range(4)]
        ends = asyncio.Event()

        async def worked_on(progress: RequestProgress) -> None:
            async with queue.turn(progress):
                await ends.wait()

        tasks = [asyncio.create_task(worked_on(progress)) for progress in scans]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait(tasks[2:3])
        assert [queue.position(progress) for progress in scans] == [0, 1, 0, 2]
        ends.set()
        await asyncio.wait(tasks)

    asyncio.run(run())


def test_a_scan_that_is_given_up_before_it_has_a_thread_is_not_read() -> None:
    async def run() -> None:
        gate, read = threading.Event(), []
        with ThreadPoolExecutor(1) as executor:
            held = executor.submit(gate.wait, 60)
            late = asyncio.create_task(in_thread(executor, read.append, "a scan"))
            await asyncio.sleep(0)
            late.cancel()
            await asyncio.wait([late], timeout=30)
            assert late.cancelled()
            gate.set()
            assert held.result(60)
        assert read == []

    asyncio.run(run())
