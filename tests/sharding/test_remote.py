"""Against a real S3 server (moto's, on loopback), and fsspec's memory file system as another kind of store."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from upfield.sharding import remote
from upfield.sharding.errors import InputError, RunError, ShardSetError
from upfield.sharding.manifest import FORMAT, MANIFEST, VERSION, hash_tree
from upfield.sharding.remote import MARKER, fetch_manifest, is_remote, remove_staging, staging_folder, upload_set
from upfield.sharding.shard import main

NAMES = ("train/000000", "train/000001", "val/000000", "test/000000", "train/000002")
OLD = NAMES[:4]


class Server:
    """A moto server that can go away and come back at the same address with what it held."""

    def __init__(self) -> None:
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        self.address = self._moto.get_host_and_port()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def stop(self) -> None:
        self._moto.stop()

    def start(self) -> None:
        self._moto = ThreadedMotoServer(*self.address, verbose=False)
        self._moto.start()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that the usual variables alone lead to, with hooks in the stores' clients."""
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
    """An empty place on each kind of store."""
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
def sent() -> Iterator[list[str]]:
    """Names of files sent, in the order of their arrival."""
    names: list[str] = []
    with watching(after=names.append):
        yield names


@pytest.fixture(scope="module", autouse=True)
def hooks() -> Iterator[None]:
    """Have both kinds of store call what `watching` sets."""
    send, send_async = MemoryFileSystem.put_file, S3FileSystem._put_file

    def watched(self, lpath, rpath, *args, **kwargs):
        HOOKS["before"](name_of(rpath))
        send(self, lpath, rpath, *args, **kwargs)
        HOOKS["after"](name_of(rpath))

    async def watched_async(self, lpath, rpath, *args, **kwargs):
        # In a thread of its own, where it may use the file system too.
        await asyncio.to_thread(HOOKS["before"], name_of(rpath))
        await send_async(self, lpath, rpath, *args, **kwargs)
        await asyncio.to_thread(HOOKS["after"], name_of(rpath))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", watched)
        # fsspec looks at it only when an instance is made, which costs a third of a second.
        patch.setattr(S3FileSystem, "_put_file", watched_async)
        yield


def ignore(name: str) -> None:
    """Do nothing."""


HOOKS: dict[str, Callable[[str], None]] = {"before": ignore, "after": ignore}


@contextmanager
def watching(before: Callable[[str], None] = ignore, after: Callable[[str], None] = ignore) -> Iterator[None]:
    """Call `before` and `after` each file that a store is sent, with its name below the set's folder."""
    HOOKS.update(before=before, after=after)
    try:
        yield
    finally:
        HOOKS.update(before=ignore, after=ignore)


def name_of(path: str) -> str:
    return "/".join(path.split("/")[-2:]) if path.endswith((".tar", ".idx")) else path.split("/")[-1]


def failing_after(count: int, error: Exception) -> AbstractContextManager[None]:
    """Let a store take `count` files and no more."""
    left = iter(range(count))

    def fail(name: str) -> None:
        if next(left, None) is None:
            raise error

    return watching(before=fail)


def write_set(folder: Path, names: tuple[str, ...], seed: int = 0, num_bytes: int = 4000) -> Path:
    """Write what an upload needs of a set: a shard of the same name and seed has the same bytes in every set."""
    splits = {split: {"shards": []} for split in ("train", "val", "test")}
    for name in names:
        tar = np.random.default_rng([seed, zlib.crc32(name.encode())]).bytes(num_bytes)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.tar").write_bytes(tar)
        (folder / f"{name}.idx").write_text(f"index of {name} {seed}\n")
        entry = {"name": name, "samples": 1, "bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()}
        splits[name.split("/")[0]]["shards"].append(entry)
    tree = {"format": FORMAT, "version": VERSION, "data_sha256": hash_tree(splits), "splits": splits}
    (folder / MANIFEST).write_text(json.dumps(tree))
    return folder


def outside(url: str) -> tuple[Any, str]:
    """Give a file system that shares no cache with the one under test, and the path in it."""
    return fsspec.core.url_to_fs(url, use_listings_cache=False)


def held(url: str) -> dict[str, bytes]:
    fs, root = outside(url)
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def put(url: str, data: bytes) -> None:
    fs, path = outside(url)
    fs.pipe_file(path, data)


def remove(url: str) -> None:
    fs, path = outside(url)
    fs.rm_file(path)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("out", ["s3://bucket/set", "gs://bucket", "memory://set", "simplecache::s3://bucket/set"])
def test_urls_are_remote(out):
    assert is_remote(out)


@pytest.mark.parametrize("out", ["shards", "/data/shards", "./s3:/x", "file:///data/shards", "a b://c", "C:/x"])
def test_paths_are_not_remote(out):
    assert not is_remote(out)


def test_a_url_has_one_staging_folder_under_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = staging_folder("s3://bucket/sets/a")
    assert folder == staging_folder("s3://bucket/sets/a/")
    assert folder.parent == tmp_path / "upfield" / "staging"
    assert folder.name.startswith("bucket-sets-a-")
    assert not folder.exists()


def test_urls_that_read_alike_have_different_staging_folders():
    assert len({staging_folder(url) for url in ("s3://b/a/c", "s3://b/a-c", "gs://b/a/c")}) == 3


def test_no_password_shows(monkeypatch):
    assert "secret" not in str(staging_folder("ftp://user:secret@host/set"))
    with pytest.raises(InputError, match=r"^https://host/set: .*found https://"):
        fetch_manifest("https://user:secret@host/set", Path("nowhere"))


def test_a_built_set_arrives_whole_and_its_manifest_last(bucket, tiny_shards, sent):
    upload_set(tiny_shards, f"{bucket}/set")
    there = held(f"{bucket}/set")
    assert there == {name: data for name, data in files(tiny_shards).items() if name in there}
    assert {name for name in files(tiny_shards) if name.endswith((".tar", ".idx"))} | {MANIFEST} == there.keys()
    assert sent[-1] == MANIFEST


def test_the_command_builds_there_repeats_and_extends(run_cli, tiny_cohort, tiny_shards, bucket, tmp_path, monkeypatch):
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
    assert (code, "complete already" in err, said.splitlines()[0].split(":")[:2]) == (
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
    assert f"{url}: complete already" in capsys.readouterr().err


def test_a_failed_upload_leaves_no_manifest_and_is_continued(url, staging, capsys):
    said = rf"^{url}: sending .* failed \(connection reset\); .*same command"
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
    assert f"{url}: 3 of 10 files are there already" in capsys.readouterr().err


def test_a_killed_upload_is_continued(bucket, staging, server):
    """The killed one finds the server by fsspec's variable, the other by Amazon's."""
    program = (
        "import os, sys, s3fs\n"
        "from pathlib import Path\n"
        "from upfield.sharding.remote import upload_set\n"
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


def test_a_server_that_goes_away_is_one_clear_line_and_the_same_call_continues(bucket, staging, server):
    names: list[str] = []

    def stop(name):
        names.append(name)
        if len(names) == 4:
            server.stop()

    said = rf"^{bucket}/set: sending .* failed \(.*{server.url}.*\); mend .*$"
    with watching(before=stop), pytest.raises(RunError, match=said):
        upload_set(staging, f"{bucket}/set")
    with pytest.raises(RunError, match=rf"^{bucket}/set: listing failed \(.*{server.url}.*\); mend .*$"):
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


def test_a_file_that_does_not_arrive_whole_is_an_error(url, staging):
    def truncate(name):
        if name == "val/000000.tar":
            put(f"{url}/{name}", b"half")

    with (
        watching(after=truncate),
        pytest.raises(RunError, match=r"val/000000.tar: expected 4000 bytes after sending, found 4"),
    ):
        upload_set(staging, url)
    assert MANIFEST not in held(url)


def test_what_is_not_ours_is_refused_and_stays(url, staging, tmp_path):
    put(f"{url}/thesis.pdf", b"years of work")
    for call in (lambda: upload_set(staging, url), lambda: fetch_manifest(url, tmp_path / "new")):
        with pytest.raises(InputError, match=rf"^{url}: expected an empty folder or a shard set, found thesis.pdf"):
            call()
    assert held(url) == {"thesis.pdf": b"years of work"}


@pytest.mark.parametrize("name", [MANIFEST, MARKER])
def test_files_of_our_names_that_are_not_ours_are_refused(url, staging, name):
    put(f"{url}/{name}", b"[]")
    with pytest.raises(InputError, match=rf"^{url}/{name}: expected .*, found something else; choose another"):
        upload_set(staging, url)
    assert held(url) == {name: b"[]"}


def test_another_set_is_refused_and_stays(url, staging, tmp_path):
    other = write_set(tmp_path / "other", OLD, seed=1)
    upload_set(other, url)
    with pytest.raises(ShardSetError, match=rf"^{url}: expected a set that this one extends, found another: .*000000"):
        upload_set(staging, url)
    assert held(url) == files(other)


def test_another_sets_unfinished_upload_is_refused(url, staging, tmp_path, capsys):
    with failing_after(2, OSError("full")), pytest.raises(RunError, match="full"):
        upload_set(write_set(tmp_path / "other", NAMES, seed=1), url)
    there = held(url)
    assert not fetch_manifest(url, tmp_path / "new")
    assert f"{url}: holds an unfinished upload of data" in capsys.readouterr().err
    with pytest.raises(ShardSetError, match=r"expected no other upload, found .* delete everything there, or choose"):
        upload_set(staging, url)
    assert held(url) == there


def test_an_upload_that_another_one_overtook_writes_no_manifest(url, staging):
    other = json.dumps({"format": remote.MARKER_FORMAT, "data_sha256": "0" * 64}).encode()
    said = r"expected this upload's marker, found another upload's: .*no manifest was"

    def overtake(name):
        if name == "train/000000.tar":
            put(f"{url}/{MARKER}", other)

    with watching(before=overtake), pytest.raises(RunError, match=said):
        upload_set(staging, url)
    assert MANIFEST not in held(url)


def test_the_same_upload_from_two_machines_ends_well(url, staging):
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
    put(f"{url}/{MARKER}", remote._marker(remote.read_manifest(staging)))
    sent.clear()
    upload_set(staging, url)
    assert held(url) == files(staging)
    assert sent == []


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


def test_a_broken_off_extension_leaves_the_old_set_complete(url, staging, tmp_path):
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
    with pytest.raises(ShardSetError, match=rf"^{url}/val/000000.tar: expected 4000 bytes, found none; .*damaged"):
        fetch_manifest(url, tmp_path / "new")
    (staging / "val/000000.tar").unlink()
    with pytest.raises(ShardSetError, match=rf"^{url}/val/000000.tar: expected 4000 bytes, found none"):
        upload_set(staging, url)


def test_a_lost_shard_that_is_still_staged_is_sent_again(url, staging, sent):
    upload_set(staging, url)
    remove(f"{url}/val/000000.tar")
    sent.clear()
    assert fetch_manifest(url, staging)
    upload_set(staging, url)
    assert sent == ["val/000000.tar", MANIFEST]
    assert held(url) == files(staging)


def test_shards_that_no_manifest_lists_are_refused(url, staging, tmp_path):
    upload_set(write_set(tmp_path / "old", OLD), url)
    put(f"{url}/README.md", b"about this set")
    put(f"{url}/train/000002.tar", b"left by an upload whose marker was deleted")
    with pytest.raises(ShardSetError, match=r"expected only the shards .* found train/000002.tar among 1 others"):
        upload_set(staging, url)


def test_a_remote_sets_manifest_comes_into_a_new_staging_folder(url, staging, tmp_path):
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


def test_staged_work_on_a_set_that_was_extended_meanwhile_is_refused_before_it_goes_on(url, staging, tmp_path):
    upload_set(staging, url)
    older = write_set(tmp_path / "older", OLD)
    before = files(older)
    with pytest.raises(ShardSetError, match=rf"its train/000002.tar is not in this one; .* delete {older} and run"):
        fetch_manifest(url, older)
    assert files(older) == before


def test_a_half_removed_staging_folder_is_of_use(url, staging):
    upload_set(staging, url)
    shutil.rmtree(staging / "train")
    assert fetch_manifest(url, staging)
    upload_set(staging, url)
    remove_staging(staging)
    assert not staging.exists()


def test_the_manifest_is_the_last_that_leaves_a_staging_folder(staging, monkeypatch):
    left: list[set[str]] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **options: (left.append(set(files(staging))), unlink(path)))
    remove_staging(staging)
    assert left == [{MANIFEST}]


def test_a_staged_manifest_of_a_set_that_is_gone_goes_too(url, staging, tmp_path):
    shutil.copytree(staging, tmp_path / "new", ignore=shutil.ignore_patterns("*.tar"))
    assert not fetch_manifest(url, tmp_path / "new")
    assert not (tmp_path / "new" / MANIFEST).exists()


def test_a_truncated_staged_shard_is_refused(url, staging):
    os.truncate(staging / "train/000001.tar", 100)
    with pytest.raises(ShardSetError, match=r"train/000001.tar: expected 4000 bytes as the manifest says, found 100"):
        upload_set(staging, url)
    assert held(url) == {}


def test_an_unfinished_build_is_not_uploaded(url, staging):
    (staging / MANIFEST).unlink()
    with pytest.raises(ShardSetError, match="expected a complete shard set"):
        upload_set(staging, url)
    assert held(url) == {}


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


def test_what_others_wrote_meanwhile_is_seen_through_fsspecs_listing_cache(bucket, staging):
    fs, root = fsspec.core.url_to_fs(f"{bucket}/set")
    put(f"{bucket}/set/{MARKER}", remote._marker(remote.read_manifest(staging)))
    assert fs.ls(root, detail=False) == [f"{root}/{MARKER}"]
    put(f"{bucket}/set/train/000009.tar", b"stray")
    with pytest.raises(ShardSetError, match=r"found train/000009.tar"):
        upload_set(staging, f"{bucket}/set")


def test_large_shards_are_sent_in_parts(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PART_BYTES", 5 * 2**20)
    large = write_set(tmp_path / "large", NAMES[:1], num_bytes=12 * 2**20)
    upload_set(large, f"{bucket}/set")
    assert held(f"{bucket}/set") == files(large)
    fs, root = outside(f"{bucket}/set")
    assert fs.info(f"{root}/{NAMES[0]}.tar")["ETag"].strip('"').endswith("-3")


def test_a_missing_bucket_is_refused(bucket, staging):
    for call in (fetch_manifest, lambda url, folder: upload_set(folder, url)):
        with pytest.raises(InputError, match=r"^s3://absent-bucket/set: expected a bucket .* create it, or check"):
            call("s3://absent-bucket/set", staging)


def test_denied_access_is_refused(url, staging):
    said = rf"^{url}: expected leave to .*\(Access Denied\); check the credentials"
    with failing_after(0, PermissionError("Access Denied")), pytest.raises(InputError, match=said):
        upload_set(staging, url)


def test_missing_credentials_are_refused(bucket, staging, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=rf"^{bucket}/set: expected leave to .*credentials.*; check the credentials"):
        upload_set(staging, f"{bucket}/set")
    S3FileSystem.clear_instance_cache()


def test_a_missing_package_is_named(staging, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    # The registry of file systems found so far; `fsspec.registry` as an attribute is a read-only view of it.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r"^s3://b/set: expected a package for s3://.*pip install 'upfield\[s3\]'"):
        upload_set(staging, "s3://b/set")


@pytest.mark.parametrize("bad", ["nonsense://b/set", "s3://", "https://host/set"])
def test_urls_that_name_no_place_to_write_are_refused(bad, staging):
    with pytest.raises(InputError, match=rf"^{bad}: expected .*, found "):
        upload_set(staging, bad)
