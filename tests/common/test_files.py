"""Files and folders are complete or absent."""

from contextlib import suppress
from pathlib import Path

import pytest

from upfield.common import files as atomic
from upfield.common.files import atomic_folder, atomic_path, point_symlink, replace_folder


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with suppress(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_fails_half_way_never_appears(tmp_path: Path) -> None:
    with suppress(RuntimeError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_another_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "content").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_link_is_switched(tmp_path: Path) -> None:
    for target in ("a", "b"):
        point_symlink(tmp_path / "last", target)
    assert (tmp_path / "last").readlink() == Path("b")
