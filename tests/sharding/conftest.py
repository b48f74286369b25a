"""Remote stores for tests: a real S3 server (moto's, on loopback), and fsspec's memory file system."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem
from stores import HOOKS, NAMES, Server, outside, watching, write_set

from upfield.common.stores.fsspec_client import FsspecClient
from upfield.common.stores.obstore_client import ObstoreClient


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An S3 server that clients find only by the usual environment variables."""
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            patch.setenv(f"AWS_{name}", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        S3FileSystem.clear_instance_cache()
        yield server
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(server: Server, request: pytest.FixtureRequest) -> str:
    """URL of a new bucket."""
    url = f"s3://{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
    fs, name = outside(url)
    fs.mkdir(name)
    return url


@pytest.fixture(params=["s3", "memory"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of an empty folder, on each kind of store."""
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/sets/a"
    else:
        yield "memory://sets/a"
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """A set of five shards."""
    return write_set(tmp_path / "staging", NAMES)


@pytest.fixture
def sent(hooks: None) -> Iterator[list[str]]:
    """Names of the files sent, in order of arrival."""
    names: list[str] = []
    with watching(after=names.append):
        yield names


@pytest.fixture(scope="module")
def hooks() -> Iterator[None]:
    """Make both clients of stores call the functions that `watching` sets."""
    with pytest.MonkeyPatch.context() as patch:
        for client in (FsspecClient, ObstoreClient):
            patch.setattr(client, "send", watched(client.send))
        yield


def watched(send: Callable[[Any, Path, str], None]) -> Callable[[Any, Path, str], None]:
    def watched_send(client: Any, path: Path, name: str) -> None:
        HOOKS["before"](name)
        send(client, path, name)
        HOOKS["after"](name)

    return watched_send
