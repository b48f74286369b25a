"""A store's errors name its address and the problem. Errors that may be temporary are raised unchanged."""

import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from upfield.common.errors import InputError, RunError
from upfield.common.stores.arrow import open_with_arrow, read_with_arrow, write_with_arrow
from upfield.common.stores.store import Store


@pytest.fixture
def store() -> Iterator[Store]:
    yield Store("memory://sets/a/")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make every transfer of the memory file system raise `error`."""

    def transfer(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "put_file", transfer)
    monkeypatch.setattr(MemoryFileSystem, "get_file", transfer)


def test_objects_that_were_sent_can_be_listed_read_fetched_and_removed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    store.send(tmp_path / "file", "train/000000.tar")
    store.write("note", b"text")
    assert store.list_sizes() == {"train/000000.tar": 7, "note": 4}
    assert store.read("note") == b"text"
    store.fetch("train/000000.tar", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    assert b"".join(store.stream("train/000000.tar")) == b"content"
    store.remove("note")
    assert store.read("note") is None


def test_slashes_at_the_end_are_removed_but_those_after_the_scheme_stay() -> None:
    assert Store("s3://bucket/set//").address == "s3://bucket/set"
    assert Store("s3://").address == "s3://"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            PermissionError("Access Denied"),
            InputError,
            r"permission denied .*\(Access Denied\)\. Check the credentials",
        ),
        (FileNotFoundError("gone"), InputError, r"no such bucket or folder.* Create it, or check the address\."),
        (OSError("reset\n by peer"), RunError, r"sending x failed \(reset by peer\)\. Check the connection"),
    ],
)
def test_an_error_of_sending_names_the_address_and_the_remedy(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    fail(monkeypatch, error)
    with pytest.raises(kind, match=rf"^memory://sets/a: {message}"):
        store.send(tmp_path / "x", "x")


def test_fetching_refuses_denied_access_and_passes_on_other_errors(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, PermissionError("Access Denied"))
    with pytest.raises(InputError, match=r"^memory://sets/a/x: permission denied .* needs to read there"):
        store.fetch("x", tmp_path / "x")
    # An error with a file name comes from this machine's disk.
    for error in (OSError("reset"), PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x")):
        fail(monkeypatch, error)
        with pytest.raises(type(error)) as raised:
            store.fetch("x", tmp_path / "x")
        assert raised.value is error


def test_a_store_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(Store("s3://bucket/set", 5.0))).timeout_s == 5.0


@pytest.mark.parametrize("address", ["folder/sweep", "s3//bucket/sweep"])
def test_text_that_is_not_an_address_is_refused_before_arrow_opens_it(address: str) -> None:
    with pytest.raises(InputError, match=rf"^{address}: this is not an address such as s3://bucket/folder"):
        open_with_arrow(address)


def test_a_file_that_arrow_wrote_is_read_and_a_missing_one_is_none(tmp_path: Path) -> None:
    filesystem, folder = open_with_arrow(f"file://{tmp_path}/a/b")
    assert read_with_arrow(filesystem, f"{folder}/note", "file:///note") is None
    write_with_arrow(filesystem, f"{folder}/note", "file:///note", b"text")
    assert read_with_arrow(filesystem, f"{folder}/note", "file:///note") == b"text"


def test_an_error_of_arrow_names_the_address_and_the_remedy(tmp_path: Path) -> None:
    filesystem, folder = open_with_arrow(f"file://{tmp_path}")
    with pytest.raises(RunError, match=r"^s3://bucket/x: reading failed \(.*\)\. Check the connection"):
        read_with_arrow(filesystem, folder, "s3://bucket/x")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"^s3://bucket/x: writing failed \(.*\)\. Check the connection"):
        write_with_arrow(filesystem, f"{folder}/file/x", "s3://bucket/x", b"")
