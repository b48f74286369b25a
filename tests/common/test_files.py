"""Files and folders are complete or absent, and a folder that cannot be written is refused."""

import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from upfield.common import files
from upfield.common.errors import InputError, UnwritableError
from upfield.common.files import (
    atomic_folder,
    atomic_path,
    check_writable,
    check_writable_file,
    make_writable_folder,
    point_symlink,
    replace_folder,
    user_cache_folder,
)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with suppress(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_fails_never_appears(tmp_path: Path) -> None:
    with suppress(RuntimeError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_replaces_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "content").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_link_is_replaced(tmp_path: Path) -> None:
    for target in ("a", "b"):
        point_symlink(tmp_path / "last", target)
    assert (tmp_path / "last").readlink() == Path("b")


def test_checking_a_folder_changes_nothing_on_the_disk(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--out")
    check_writable(tmp_path, "--out")
    assert list(tmp_path.iterdir()) == []
    make_writable_folder(tmp_path / "a" / "b", "--out")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


@pytest.mark.parametrize("prepare", [check_writable, make_writable_folder])
@pytest.mark.parametrize("place", ["file", "file/folder", "broken_link", "broken_link/folder"])
def test_a_folder_that_cannot_be_created_is_refused_with_its_option(
    tmp_path: Path, prepare: Callable[[Path, str], None], place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken_link").symlink_to("/proc/1/nowhere/at/all")
    with pytest.raises(
        UnwritableError, match=rf"{place}: cannot write there \(.*\)\. Choose another --run\.out\."
    ) as refused:
        prepare(tmp_path / place, "--run.out")
    # Workers of a pool or of Ray pickle their errors to send them to another process.
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(files.os.path, "expanduser", lambda path: path)  # as for a user without an entry in passwd
    with pytest.raises(InputError, match=r"no cache folder for shards, .* no home folder\. Set --data\.cache_dir\."):
        user_cache_folder("shards", "Set --data.cache_dir.")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder("shards") == tmp_path / "upfield" / "shards"


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.txt", r"must end in \.png or \.html"), ("folder.png", "is a folder"), ("file/a.png", "cannot write there")],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message):
        check_writable_file(tmp_path / name, "--out", [".png", ".html"])
    check_writable_file(tmp_path / "new" / "a.png", "--out", [".png"])
