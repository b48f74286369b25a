"""Access control: host names, origins and the token."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Service, ask, running, send, write_scan

from upfield.common.errors import InputError
from upfield.export.configuration import ServeConfig
from upfield.export.service.access import accepted_hosts, read_token

TOKEN = "a-token"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz")


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tiny_model, tmp_path_factory.mktemp("work") / "w") as started:
        yield started


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPFIELD_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("UPFIELD_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    assert read_token(file) == "from-a-file"
    refused = dict.fromkeys(("", " \n", "two words"), "must be one word") | {"\u00e9": "cannot read the token"}
    for text, message in refused.items():
        file.write_text(text)
        with pytest.raises(InputError, match=rf"token_file .*{message}"):
            read_token(file)


def test_another_sites_page_may_not_send_scans(service: Service, scan: Path) -> None:
    response = send(service.port, scan, headers={"Origin": "http://elsewhere.example"})
    assert response.status == 403
    assert send(service.port, scan, headers={"Origin": f"http://127.0.0.1:{service.port}"}).status == 200
    # Behind a proxy the names differ, and only Sec-Fetch-Site shows that the page is the service's own.
    behind = {"Origin": "https://upfield.example", "Sec-Fetch-Site": "same-origin"}
    assert send(service.port, scan, headers=behind).status == 200
    assert send(service.port, scan, headers=behind | {"Sec-Fetch-Site": "cross-site"}).status == 403


def test_without_the_token_only_paths_without_confidential_data_are_served(
    tiny_model: Path, tmp_path: Path, scan: Path
) -> None:
    with running(tiny_model, tmp_path / "w", token=TOKEN) as service:
        for path in ("/", "/health", "/ready", "/docs", "/openapi.json", "/page/page.js"):
            assert ask(service.port, path).status == 200
        for path in ("/model", "/metrics", "/progress/x"):
            response = ask(service.port, path)
            assert response.status == 401
            assert response.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer ", "Bearer \xe9"):
            assert send(service.port, scan, headers={"Authorization": given}).status == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert send(service.port, scan, headers=right).status == 200
        assert ask(service.port, "/model", headers=right).status == 200


def test_a_local_service_accepts_only_its_own_names(service: Service) -> None:
    for name in ("localhost", "127.0.0.1:80", "[::1]", "[::1]:8000", "LOCALHOST:1"):
        assert ask(service.port, "/health", headers={"Host": name}).status == 200
    for name in ("elsewhere.example", "elsewhere.example:8000", "localhost.example", ""):
        response = ask(service.port, "/", headers={"Host": name})
        assert response.status == 421
        assert "allowed_hosts" in response.error


def test_allowed_hosts_are_accepted() -> None:
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
