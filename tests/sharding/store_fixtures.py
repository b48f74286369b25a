"""Fixtures of remote stores that fail on demand."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import FaultyServer, from_folder, from_server
from moto.server import ThreadedMotoServer


@pytest.fixture
def http_store(tiny_shards: Path) -> Iterator[FaultyServer]:
    """`tiny_shards` over HTTP."""
    server = FaultyServer(from_folder(tiny_shards))
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3_server(tiny_shards: Path) -> Iterator[str]:
    """URL of an S3 server whose bucket `sets` holds `tiny_shards` as `tiny`."""
    from s3fs import S3FileSystem

    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    url = "http://{}:{}".format(*moto.get_host_and_port())
    store = S3FileSystem(key="testing", secret="testing", endpoint_url=url, skip_instance_cache=True)
    store.mkdir("sets")
    store.put(str(tiny_shards), "sets/tiny", recursive=True)
    yield url
    moto.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """The S3 server behind a proxy that can fail; clients find it by the usual environment variables."""
    server = FaultyServer(from_server(s3_server))
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.close()
