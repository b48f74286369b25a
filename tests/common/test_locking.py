import os

import pytest

from upfield.common import locking
from upfield.common.locking import LOCK, lock_folder, open_lock
from upfield.distributed.agreement import is_held


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path):
    lock = lock_folder(tmp_path, "--out")
    assert lock is not None
    assert lock_folder(tmp_path, "--out") is None
    assert is_held(tmp_path)
    lock.close()
    lock.close()
    assert list(tmp_path.iterdir()) == []
    assert not is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_owner_forgets_is_released(tmp_path):
    lock = lock_folder(tmp_path, "--out")
    assert lock is not None
    del lock
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_remove_the_lock(tmp_path, monkeypatch):
    lock = lock_folder(tmp_path, "--out")
    assert lock is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        lock.close()
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_removed_before_it_was_locked_is_no_lock(tmp_path, monkeypatch, replaced):
    path, plain, calls = tmp_path / LOCK, locking.try_lock, []

    def released_by_another(file, folder):
        if not calls:
            path.unlink()
            if replaced:
                path.touch()
        calls.append(file)
        return plain(file, folder)

    monkeypatch.setattr(locking, "try_lock", released_by_another)
    lock = open_lock(path, tmp_path)
    assert lock is not None
    assert len(calls) == 2
    assert calls[0].closed
    assert os.path.samestat(os.fstat(lock.fileno()), path.stat())
    lock.close()
