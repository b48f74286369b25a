"""Remote stores for tests: a real S3 server (moto's, on loopback), and fsspec's memory file system."""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem
from stores import HOOKS, NAMES, Server, name_of, outside, watching, write_set


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
    """Make both kinds of store call the functions that `watching` sets."""
    send, send_async = MemoryFileSystem.put_file, S3FileSystem._put_file

    def watched(self, lpath, rpath, *args, **kwargs):
        HOOKS["before"](name_of(rpath))
        send(self, lpath, rpath, *args, **kwargs)
        HOOKS["after"](name_of(rpath))

    async def watched_async(self, lpath, rpath, *args, **kwargs):
        # In a separate thread, because the hook may use the file system too.
        await asyncio.to_thread(HOOKS["before"], name_of(rpath))
        await send_async(self, lpath, rpath, *args, **kwargs)
        await asyncio.to_thread(HOOKS["after"], name_of(rpath))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", watched)
        # fsspec reads this method only when it creates an instance, which takes a third of a second.
        patch.setattr(S3FileSystem, "_put_file", watched_async)
        yield
