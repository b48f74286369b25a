"""Extension of a remote set, and the contents of the staging folder meanwhile."""

import os
import shutil
from pathlib import Path

import pytest
from stores import OLD, failing_after, files, held, put, remove, write_set

from upfield.common.errors import RunError, ShardSetError
from upfield.sharding.building.upload import fetch_manifest, remove_staging, upload_set
from upfield.sharding.shardset.manifest import MANIFEST

pytestmark = pytest.mark.usefixtures("hooks")


def test_an_extension_needs_and_sends_new_shards_only(url, staging, tmp_path, sent):
    old = write_set(tmp_path / "old", OLD)
    upload_set(old, url)
    for name in OLD:
        (staging / f"{name}.tar").unlink()
        (staging / f"{name}.idx").unlink()
    sent.clear()
    upload_set(staging, url)
    assert sorted(sent[:-1]) == ["train/000002.idx", "train/000002.tar"]
    assert held(url) == files(old) | files(staging)


def test_an_interrupted_extension_leaves_the_old_set_complete(url, staging, tmp_path):
    old = write_set(tmp_path / "old", OLD)
    upload_set(old, url)
    with failing_after(1, OSError("full")), pytest.raises(RunError, match="full"):
        upload_set(staging, url)
    assert files(old).items() <= held(url).items()
    upload_set(staging, url)
    assert held(url) == files(staging)


def test_an_extension_of_a_set_that_lost_a_shard_is_refused(url, staging, tmp_path):
    upload_set(write_set(tmp_path / "old", OLD), url)
    remove(f"{url}/val/000000.tar")
    with pytest.raises(ShardSetError, match=rf"^{url}/val/000000.tar: expected 4000 bytes, found no file. .*damaged"):
        fetch_manifest(url, tmp_path / "new")
    (staging / "val/000000.tar").unlink()
    with pytest.raises(ShardSetError, match=rf"^{url}/val/000000.tar: expected 4000 bytes, found no file"):
        upload_set(staging, url)


def test_a_lost_shard_that_is_still_staged_is_sent_again(url, staging, sent):
    upload_set(staging, url)
    remove(f"{url}/val/000000.tar")
    sent.clear()
    assert fetch_manifest(url, staging)
    upload_set(staging, url)
    assert sent == ["val/000000.tar", MANIFEST]
    assert held(url) == files(staging)


def test_shards_that_belong_to_no_known_set_are_refused(url, staging, tmp_path):
    upload_set(write_set(tmp_path / "old", OLD), url)
    put(f"{url}/README.md", b"about this set")
    put(f"{url}/train/000002.tar", b"left by an upload whose marker was deleted")
    with pytest.raises(ShardSetError, match=r"found 1 file that no known set contains, such as train/000002.tar"):
        upload_set(staging, url)


def test_the_manifest_of_a_remote_set_is_copied_into_a_new_staging_folder(url, staging, tmp_path):
    assert not fetch_manifest(url, tmp_path / "new")
    assert files(tmp_path / "new") == {}
    upload_set(staging, url)
    assert fetch_manifest(url, tmp_path / "new")
    assert files(tmp_path / "new") == {MANIFEST: (staging / MANIFEST).read_bytes()}


def test_a_staging_folder_with_shards_stays_as_it_is(url, staging, tmp_path):
    upload_set(write_set(tmp_path / "old", OLD), url)
    before = files(staging)
    assert fetch_manifest(url, staging)
    assert files(staging) == before


def test_staged_work_on_a_set_that_others_have_extended_is_refused_before_it_continues(url, staging, tmp_path):
    upload_set(staging, url)
    older = write_set(tmp_path / "older", OLD)
    before = files(older)
    with pytest.raises(ShardSetError, match=rf"its train/000002.tar is not in this set. .* delete {older} and run"):
        fetch_manifest(url, older)
    assert files(older) == before


def test_a_half_removed_staging_folder_can_still_be_used(url, staging):
    upload_set(staging, url)
    shutil.rmtree(staging / "train")
    assert fetch_manifest(url, staging)
    upload_set(staging, url)
    remove_staging(staging)
    assert not staging.exists()


def test_the_manifest_is_removed_last_from_a_staging_folder(staging, monkeypatch):
    left: list[set[str]] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **options: (left.append(set(files(staging))), unlink(path)))
    remove_staging(staging)
    assert left == [{MANIFEST}]


def test_the_staged_manifest_of_a_set_that_is_gone_is_removed(url, staging, tmp_path):
    shutil.copytree(staging, tmp_path / "new", ignore=shutil.ignore_patterns("*.tar"))
    assert not fetch_manifest(url, tmp_path / "new")
    assert not (tmp_path / "new" / MANIFEST).exists()


def test_a_truncated_staged_shard_is_refused(url, staging):
    os.truncate(staging / "train/000001.tar", 100)
    with pytest.raises(ShardSetError, match=r"train/000001.tar: expected 4000 bytes as in the manifest, found 100"):
        upload_set(staging, url)
    assert held(url) == {}


def test_an_unfinished_build_is_not_uploaded(url, staging):
    (staging / MANIFEST).unlink()
    with pytest.raises(ShardSetError, match="there is no shard set here"):
        upload_set(staging, url)
    assert held(url) == {}
