"""The service refuses bad requests with the command line's messages, and leaves no files behind."""

import http.client
import json
import re
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from serving import Service, ask, gzip_bomb, metric, running, send, send_form, wait_until, write_scan

from upfield.export import enhance
from upfield.export.service.errors import EngineError
from upfield.export.service.scan_requests.upload import clean_name

BAD = ("4-D", "NaN", "constant", "small", "cut off", "empty", "text", "text named gzip", "another kind")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz")


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with limits that small files exceed."""
    limits: dict[str, Any] = {"max_body_bytes": 200_000, "max_decompressed_bytes": 1_000_000, "max_voxels": 50_000}
    with running(tiny_model, tmp_path_factory.mktemp("work") / "w", scans_at_once=1, max_queue=1, **limits) as started:
        yield started


def bad_files(folder: Path) -> dict[str, Path]:
    """Write one file for each reason to refuse a scan."""
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
    files["another kind"].write_bytes(bytes(128) + b"DICM" + whole)
    return files


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_scan_is_refused_with_the_message_of_the_command_line(
    service: Service, tiny_model: Path, tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = bad_files(tmp_path)[kind]
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli(enhance.main, tiny_model, file.name, "--out", "out")
    assert code == 2
    said = err.splitlines()[-1].removeprefix("upfield enhance: error: ")
    for response in (send(service.port, file), send_form(service.port, file.name, file.read_bytes())):
        assert response.status == 422
        assert response.error == said
        assert str(tmp_path) not in response.error
    assert list(service.folder.iterdir()) == []


@pytest.mark.parametrize("way", ["announced", "in pieces", "form"])
def test_a_body_that_is_too_long_is_cut_off(service: Service, way: str) -> None:
    body = bytes(400_000)
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    response = (
        send_form(service.port, "a.nii", body)
        if way == "form"
        else ask(service.port, "/enhance", "POST", body if way == "announced" else pieces)
    )
    assert response.status == 413
    size = "400000" if way == "announced" else r"(at least )?\d{6}"
    assert re.match(rf"The upload has {size} bytes, and the limit is 200000\.", response.error)
    assert list(service.folder.iterdir()) == []


def test_a_client_that_announces_too_much_and_waits_is_refused_at_once(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(
            b"POST /enhance HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_gzip_bomb_is_refused_without_being_expanded(service: Service) -> None:
    bomb = gzip_bomb(150_000_000)
    assert len(bomb) < 200_000
    tracemalloc.start()
    response = send_form(service.port, "bomb.nii.gz", bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert response.status == 413
    problem = "the decompressed content is longer than the limit of 1000000 bytes"
    assert response.error == f"bomb.nii.gz: {problem}. Crop the scan."
    assert peak < 20_000_000


@pytest.mark.parametrize(("shape", "zooms"), [((40, 40, 40), (1, 1, 1)), ((10, 10, 10), (9, 9, 9))])
def test_too_many_voxels_are_refused_by_the_header_alone(
    service: Service, shape: tuple[int, int, int], zooms: tuple[int, int, int]
) -> None:
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag((*zooms, 1)))
    # The file has no voxels, and reading them would fail with another message.
    response = send_form(service.port, "large.nii", image.to_bytes()[:352])
    assert response.status == 413
    assert "expected at most 50000 voxels" in response.error


def test_a_form_without_a_file_is_refused(service: Service) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    nothing = b'--x\r\nContent-Disposition: form-data; name="scan"\r\n\r\nwords\r\n--x--\r\n'
    assert ask(service.port, "/enhance", "POST", nothing, form).status == 422
    assert ask(service.port, "/enhance", "POST", b"no form", form).status in (400, 422)
    assert ask(service.port, "/enhance?id=me", "POST", nothing, form).status == 400


def test_a_files_name_is_cleaned_and_only_shown(service: Service, scan: Path) -> None:
    response = send_form(service.port, "../../etc/ev\\il\u202e.nii.gz", scan.read_bytes())
    assert response.status == 200
    shown = response.headers["content-disposition"]
    assert re.fullmatch(r"attachment; filename=\"[A-Za-z0-9._ -]+\"; filename\*=UTF-8''[A-Za-z0-9._%-]+", shown)
    assert "il_enhanced.nii.gz" in shown
    assert "etc" not in shown
    assert clean_name("a\r\nSet-Cookie: x.nii") == "aSet-Cookie: x.nii"
    assert clean_name("///") == ""
    assert len(clean_name("n" * 5000 + ".nii.gz")) <= 120


def test_a_scan_over_the_limit_is_told_when_to_try_again(service: Service, scan: Path) -> None:
    service.engine.gate.clear()
    responses = []
    senders = [threading.Thread(target=lambda: responses.append(send(service.port, scan))) for _ in range(2)]
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
    assert "already has 2 scans, which is its limit" in refused.error
    assert [response.status for response in responses] == [200, 200]
    wait_until(lambda: metric(service.port, "upfield_scans") == 0)


def test_progress_is_reported_while_a_scan_is_enhanced(service: Service, scan: Path) -> None:
    service.engine.gate.clear()
    number, other = "0" * 31 + "1", "0" * 31 + "2"
    senders = [threading.Thread(target=send, args=(service.port, scan.read_bytes(), f"/enhance?id={number}"))]
    senders.append(threading.Thread(target=send, args=(service.port, scan.read_bytes(), f"/enhance?id={other}")))

    def progress_of(which: str) -> dict[str, object]:
        return json.loads(ask(service.port, f"/progress/{which}").body)

    senders[0].start()
    wait_until(lambda: progress_of(number).get("state") == "restoring")
    senders[1].start()
    wait_until(lambda: progress_of(other).get("state") == "waiting")
    assert progress_of(number) == {"state": "restoring", "position": 0, "slices_done": 0, "num_slices": 19}
    assert progress_of(other)["position"] == 1
    service.engine.gate.set()
    for sender in senders:
        sender.join(60)
    assert ask(service.port, f"/progress/{number}").status == 404


def test_a_client_that_disconnects_leaves_no_files_behind(service: Service, scan: Path) -> None:
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


def test_a_failure_of_the_service_is_reported_without_paths(
    service: Service, scan: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for error, status in ((KeyError("/secret/path"), 500), (EngineError("/secret/replica died"), 503)):
        service.engine.error = error
        try:
            response = send(service.port, scan)
        finally:
            service.engine.error = None
        assert response.status == status
        assert "secret" not in response.error
        assert "Traceback" not in response.body.decode()
        logged = capfd.readouterr().err
        assert response.headers["x-request-id"] in logged
        assert "/secret/" in logged
    assert send(service.port, scan).status == 200


def test_unknown_paths_get_an_error_with_a_message(service: Service) -> None:
    for path, method, status in (("/nowhere", "GET", 404), ("/page/../serve.py", "GET", 404), ("/enhance", "GET", 405)):
        response = ask(service.port, path, method)
        assert response.status == status
        assert response.error
        assert response.headers.get("allow") == ("POST" if status == 405 else None)


def test_a_name_without_a_last_part_counts_as_no_name(service: Service, scan: Path) -> None:
    response = send(service.port, scan.read_bytes(), "/enhance?name=///")
    assert response.status == 200
    assert 'filename="scan_enhanced.nii.gz"' in response.headers["content-disposition"]


def test_names_of_content_types_ignore_case(service: Service, scan: Path) -> None:
    sent = send_form(service.port, "a.NII.GZ", scan.read_bytes(), {"Content-Type": "Multipart/Form-Data; boundary=b"})
    assert sent.status == 400
    assert "not a form with one file" in sent.error


def test_every_response_carries_security_headers(service: Service) -> None:
    for path in ("/", "/docs", "/health", "/nowhere"):
        headers = ask(service.port, path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_the_pages_load_nothing_from_other_sites(service: Service) -> None:
    for path in ("/", "/docs", "/page/page.css", "/page/page.js", "/page/viewer.js"):
        response = ask(service.port, path)
        assert response.status == 200
        assert not re.search(rb"https?://|src=['\"]?//|@import", response.body)


def test_a_request_that_takes_too_long_is_refused(tiny_model: Path, tmp_path: Path, scan: Path) -> None:
    with running(tiny_model, tmp_path / "w", timeout_s=0.5) as service:
        service.engine.gate.clear()
        response = send(service.port, scan)
        assert response.status == 504
        assert response.error == "The scan was not finished within 0.5 s (last step: restoring). Try again later."
        assert list(service.folder.iterdir()) == []


def test_ready_reports_whether_a_replica_responds(service: Service) -> None:
    assert ask(service.port, "/ready").status == 200
    service.engine.ready = False
    response = ask(service.port, "/ready")
    service.engine.ready = True
    assert response.status == 503
    assert "retry-after" in response.headers
    assert ask(service.port, "/health").status == 200


def test_a_request_with_endless_headers_is_cut_off(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.fixture(scope="module")
def impatient(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with a short idle timeout and a single place."""
    with running(
        tiny_model, tmp_path_factory.mktemp("work") / "w", scans_at_once=1, max_queue=0, idle_timeout_s=0.3
    ) as started:
        yield started


def test_a_client_that_stops_sending_loses_its_place(impatient: Service, scan: Path) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=30) as connection:
        connection.sendall(b"POST /enhance HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nonly this")
        response = b"".join(iter(lambda: connection.recv(1000), b""))
    assert response.startswith(b"HTTP/1.1 408")
    assert b"The upload paused for more than 0.3 s. Send the scan again." in response
    assert list(impatient.folder.iterdir()) == []
    wait_until(lambda: send(impatient.port, scan).status == 200)
