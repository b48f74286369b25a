"""Folders for uploads: removed with their process, or by the next service."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import TIMEOUT_S

from upfield.export.service import work_folder as workfolder
from upfield.export.service.work_folder import PREFIX, work_folder


def test_folders_of_killed_services_are_removed_and_those_of_running_services_stay(tmp_path: Path) -> None:
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
    outcomes = iter([False, True])
    monkeypatch.setattr(workfolder, "_try_lock", lambda lock: next(outcomes))
    with work_folder(tmp_path) as folder:
        assert len(list(tmp_path.iterdir())) == 2
        assert folder.exists()
