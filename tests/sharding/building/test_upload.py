"""Uploads to a real S3 server (moto's, on loopback), and to fsspec's memory file system as another kind of store."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import fsspec.config
import pytest
from stores import NAMES, OLD, failing_after, files, held, outside, put, remove, watching, write_set

from upfield.common.errors import InputError, RunError, ShardSetError
from upfield.common.stores import obstore_client
from upfield.common.stores.store import Store
from upfield.sharding.building.upload import (
    MARKER,
    MARKER_FORMAT,
    _marker_bytes,
    fetch_manifest,
    staging_folder,
    upload_set,
)
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import MANIFEST, read_manifest

pytestmark = pytest.mark.usefixtures("hooks")


def test_a_url_has_one_staging_folder_under_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = staging_folder("s3://bucket/sets/a")
    assert folder == staging_folder("s3://bucket/sets/a/")
    assert folder.parent == tmp_path / "upfield" / "staging"
    assert folder.name.startswith("bucket-sets-a-")
    assert not folder.exists()


def test_urls_that_read_alike_have_different_staging_folders():
    assert len({staging_folder(url) for url in ("s3://b/a/c", "s3://b/a-c", "gs://b/a/c")}) == 3


def test_passwords_are_not_shown(monkeypatch):
    assert "secret" not in str(staging_folder("ftp://user:secret@host/set"))
    with pytest.raises(InputError, match=r"^https://host/set: https:// addresses can only be read"):
        fetch_manifest("https://user:secret@host/set", Path("nowhere"))


def test_a_built_set_arrives_complete_and_its_manifest_last(bucket, tiny_shards, sent):
    upload_set(tiny_shards, f"{bucket}/set")
    there = held(f"{bucket}/set")
    assert there == {name: data for name, data in files(tiny_shards).items() if name in there}
    assert {name for name in files(tiny_shards) if name.endswith((".tar", ".idx", ".index"))} | {
        MANIFEST
    } == there.keys()
    assert sent[-1] == MANIFEST


def test_the_command_builds_repeats_and_extends_a_remote_set(
    run_cli, tiny_cohort, tiny_shards, bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = (tiny_cohort / "cohorts.yaml").read_text()
    first = text[: text.index("  - name: ixi")]
    for name, content in (("first", first), ("both", text)):
        (tmp_path / f"{name}.yaml").write_text(content)

    def shard(name):
        flags = ("--out", f"{bucket}/set", "--root", tiny_cohort, "--jobs", 1)
        return run_cli(main, "--config", tmp_path / f"{name}.yaml", *flags)

    assert shard("first")[0] == 0
    before = held(f"{bucket}/set")
    code, said, err = shard("first")
    assert (code, "already complete" in err, said.splitlines()[0].split(":")[:2]) == (
        0,
        True,
        ["s3", f"//{bucket[5:]}/set"],
    )
    assert held(f"{bucket}/set") == before
    assert shard("both")[0] == 0
    after = held(f"{bucket}/set")
    assert {name: after[name] for name in before if name != MANIFEST} == {
        name: data for name, data in before.items() if name != MANIFEST
    }
    samples = {split: tree["samples"] for split, tree in json.loads(after[MANIFEST])["splits"].items()}
    assert samples == {"train": 180, "val": 20, "test": 20}
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_whole_bucket_can_be_the_destination(bucket, staging):
    upload_set(staging, f"{bucket}/")
    assert held(bucket) == files(staging)


def test_a_complete_set_is_not_sent_again(url, staging, sent, capsys):
    upload_set(staging, url)
    sent.clear()
    upload_set(staging, f"{url}/")
    assert sent == []
    assert f"{url}: already complete" in capsys.readouterr().err


def test_a_failed_upload_leaves_no_manifest_and_is_continued(url, staging, capsys):
    said = rf"^{url}: sending .* failed \(connection reset\)\. .*same command"
    with failing_after(3, OSError("connection reset")), pytest.raises(RunError, match=said):
        upload_set(staging, url)
    there = held(url)
    assert MANIFEST not in there
    assert len(there) == 3 + 1, "three files and the marker"
    names: list[str] = []
    with watching(after=names.append):
        upload_set(staging, url)
    assert held(url) == files(staging)
    assert sorted([*names, *there.keys() - {MARKER}]) == sorted(files(staging))
    assert f"{url}: 3 of 10 files are already there" in capsys.readouterr().err


def test_a_killed_upload_is_continued(bucket, staging, server):
    """The killed upload finds the server by fsspec's variable, and so uses s3fs; the second finds it by Amazon's."""
    program = (
        "import os, sys, s3fs\n"
        "from pathlib import Path\n"
        "from upfield.sharding.building.upload import upload_set\n"
        "put, left = s3fs.S3FileSystem._put_file, list(range(4))\n"
        "async def dying(self, *args, **kwargs):\n"
        "    left.pop() if left else os.kill(os.getpid(), 9)\n"
        "    await put(self, *args, **kwargs)\n"
        "s3fs.S3FileSystem._put_file = dying\n"
        "upload_set(Path(sys.argv[1]), sys.argv[2])\n"
    )
    variables = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}
    variables["FSSPEC_S3_ENDPOINT_URL"] = server.url
    command = [sys.executable, "-c", program, str(staging), f"{bucket}/set"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    there = held(f"{bucket}/set")
    assert MARKER in there
    assert MANIFEST not in there
    upload_set(staging, f"{bucket}/set")
    assert held(f"{bucket}/set") == files(staging)


def test_a_server_that_goes_away_gives_one_clear_line_and_the_same_call_continues(bucket, staging, server):
    names: list[str] = []

    def stop(name):
        names.append(name)
        if len(names) == 4:
            server.stop()

    said = rf"^{bucket}/set: sending .* failed \(.*{server.url}.*\)\. Check the connection .*$"
    with watching(before=stop), pytest.raises(RunError, match=said):
        upload_set(staging, f"{bucket}/set")
    with pytest.raises(
        RunError, match=rf"^{bucket}/set: listing failed \(.*{server.url}.*\)\. Check the connection .*$"
    ):
        fetch_manifest(f"{bucket}/set", staging)
    server.start()
    assert not fetch_manifest(f"{bucket}/set", staging)
    upload_set(staging, f"{bucket}/set")
    assert held(f"{bucket}/set") == files(staging)


def test_an_object_of_another_size_is_sent_again(url, staging):
    with failing_after(10, OSError("full")), pytest.raises(RunError, match="full"):
        upload_set(staging, url)
    put(f"{url}/train/000000.tar", b"half")
    upload_set(staging, url)
    assert held(url) == files(staging)


def test_a_file_that_does_not_arrive_completely_is_an_error(url, staging):
    def truncate(name):
        if name == "val/000000.tar":
            put(f"{url}/{name}", b"half")

    with (
        watching(after=truncate),
        pytest.raises(RunError, match=r"val/000000.tar: expected 4000 bytes after sending, found 4"),
    ):
        upload_set(staging, url)
    assert MANIFEST not in held(url)


def test_a_folder_with_other_files_is_refused_and_stays(url, staging, tmp_path):
    put(f"{url}/thesis.pdf", b"years of work")
    for call in (lambda: upload_set(staging, url), lambda: fetch_manifest(url, tmp_path / "new")):
        with pytest.raises(
            InputError, match=rf"^{url}: the folder is neither empty nor a shard set; it holds thesis.pdf"
        ):
            call()
    assert held(url) == {"thesis.pdf": b"years of work"}


@pytest.mark.parametrize("name", [MANIFEST, MARKER])
def test_other_files_with_the_names_of_ours_are_refused(url, staging, name):
    put(f"{url}/{name}", b"[]")
    with pytest.raises(InputError, match=rf"^{url}/{name}: this is not the .*\. Choose another"):
        upload_set(staging, url)
    assert held(url) == {name: b"[]"}


def test_another_set_is_refused_and_stays(url, staging, tmp_path):
    other = write_set(tmp_path / "other", OLD, seed=1)
    upload_set(other, url)
    with pytest.raises(ShardSetError, match=rf"^{url}: another shard set is there; .*000000"):
        upload_set(staging, url)
    assert held(url) == files(other)


def test_another_sets_unfinished_upload_is_refused(url, staging, tmp_path, capsys):
    with failing_after(2, OSError("full")), pytest.raises(RunError, match="full"):
        upload_set(write_set(tmp_path / "other", NAMES, seed=1), url)
    there = held(url)
    assert not fetch_manifest(url, tmp_path / "new")
    assert f"{url}: an unfinished upload of data" in capsys.readouterr().err
    with pytest.raises(ShardSetError, match=r"an unfinished upload .* is there, .* delete everything there, or choose"):
        upload_set(staging, url)
    assert held(url) == there


def test_an_upload_overtaken_by_another_sends_no_manifest(url, staging):
    other = json.dumps({"format": MARKER_FORMAT, "data_sha256": "0" * 64}).encode()
    said = r"the marker of this upload was replaced by that of another upload, .*the manifest was"

    def overtake(name):
        if name == "train/000000.tar":
            put(f"{url}/{MARKER}", other)

    with watching(before=overtake), pytest.raises(RunError, match=said):
        upload_set(staging, url)
    assert MANIFEST not in held(url)


def test_the_same_upload_from_two_machines_succeeds(url, staging):
    def be_faster(name):
        if name == "train/000000.tar":
            for other, data in files(staging).items():
                put(f"{url}/{other}", data)
            remove(f"{url}/{MARKER}")

    with watching(before=be_faster):
        upload_set(staging, url)
    assert held(url) == files(staging)


def test_a_marker_that_a_kill_left_behind_a_complete_set_is_removed(url, staging, sent):
    upload_set(staging, url)
    put(f"{url}/{MARKER}", _marker_bytes(read_manifest(staging)))
    sent.clear()
    upload_set(staging, url)
    assert held(url) == files(staging)
    assert sent == []


def test_neighbours_with_longer_names_are_left_alone(bucket, staging):
    put(f"{bucket}/set-2/notes", b"other work")
    upload_set(staging, f"{bucket}/set")
    assert held(f"{bucket}/set") == files(staging)
    assert held(f"{bucket}/set-2") == {"notes": b"other work"}


def test_a_folder_made_in_a_console_is_empty(bucket, staging):
    fs, root = outside(f"{bucket}/set")
    fs.call_s3("put_object", Bucket=root.split("/")[0], Key="set/", Body=b"")
    assert fs.exists(root)
    upload_set(staging, f"{bucket}/set")
    assert held(f"{bucket}/set") == files(staging) | {"": b""}


def test_files_written_by_others_are_seen_despite_fsspecs_listing_cache(bucket, staging):
    fs, root = fsspec.core.url_to_fs(f"{bucket}/set")
    put(f"{bucket}/set/{MARKER}", _marker_bytes(read_manifest(staging)))
    assert fs.ls(root, detail=False) == [f"{root}/{MARKER}"]
    store = Store(f"{bucket}/set")
    assert store.list_sizes().keys() == {MARKER}
    put(f"{bucket}/set/train/000009.tar", b"stray")
    assert store.list_sizes().keys() == {MARKER, "train/000009.tar"}
    with pytest.raises(ShardSetError, match=r"that no known set contains, such as train/000009.tar"):
        upload_set(staging, f"{bucket}/set")


def test_large_shards_are_sent_in_parts(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(obstore_client, "PART_BYTES", 5 * 2**20)
    large = write_set(tmp_path / "large", NAMES[:1], num_bytes=12 * 2**20)
    upload_set(large, f"{bucket}/set")
    assert held(f"{bucket}/set") == files(large)
    fs, root = outside(f"{bucket}/set")
    assert fs.info(f"{root}/{NAMES[0]}.tar")["ETag"].strip('"').endswith("-3")


def test_a_missing_bucket_is_refused(bucket, staging):
    for call in (fetch_manifest, lambda url, folder: upload_set(folder, url)):
        with pytest.raises(InputError, match=r"^s3://absent-bucket/set: no such bucket .* Create it, or check"):
            call("s3://absent-bucket/set", staging)


def test_denied_access_is_refused(url, staging):
    said = rf"^{url}: permission denied .*\(Access Denied\)\. Check the credentials .* list, read and write there"
    with failing_after(0, PermissionError("Access Denied")), pytest.raises(InputError, match=said):
        upload_set(staging, url)


def test_a_missing_package_is_named(staging, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": False})
    monkeypatch.setitem(sys.modules, "s3fs", None)
    # The registry of the file systems loaded so far. The attribute `fsspec.registry` is only a read-only view of it.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r"^s3://b/set: the package for s3:// is missing .*pip install s3fs"):
        upload_set(staging, "s3://b/set")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("nonsense://b/set", "this is not an address"),
        ("s3://", "the address names no bucket or folder"),
        ("https://host/set", "https:// addresses can only be read"),
    ],
)
def test_urls_that_cannot_be_written_are_refused(bad, problem, staging):
    with pytest.raises(InputError, match=rf"^{bad}: {problem}"):
        upload_set(staging, bad)
