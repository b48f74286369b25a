"""obstore reads S3, GCS, Azure and web addresses with limits, errors and credentials like those of other clients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty import Answer, FaultyServer, from_folder

from upfield.common.errors import InputError, RunError
from upfield.common.stores import obstore_client
from upfield.common.stores.obstore_client import ObstoreClient
from upfield.common.stores.store import Store

MANIFEST, SHARD = "manifest.json", "train/000000.tar"
READ_IN_A_FORKED_PROCESS = """
import os, sys
from upfield.common.stores.store import Store
store = Store(sys.argv[1], 20)
in_parent = store.read("manifest.json")
child = os.fork()
if not child:
    os._exit(store.read("manifest.json") != in_parent)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

DOWNLOAD_AND_EXIT = """
import sys
from upfield.common.stores.store import Store
Store(sys.argv[1], 20).fetch_ranges("train/000000.tar", [(start, start + 10) for start in range(0, 70000, 2000)])
"""


def test_a_forked_process_can_read(http_store: FaultyServer) -> None:
    command = [sys.executable, "-W", "ignore", "-c", READ_IN_A_FORKED_PROCESS, http_store.url]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert http_store.asked[f"/{MANIFEST}"] == 2


def test_a_slow_but_steady_download_is_not_a_stall(http_store: FaultyServer, tiny_shards: Path, tmp_path: Path) -> None:
    http_store.fail(SHARD, ["slow"])
    store = Store(http_store.url, timeout_s=0.3)
    store.fetch(SHARD, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == (tiny_shards / SHARD).read_bytes()


def test_a_download_that_is_too_long_ends(http_store: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        Store(http_store.url).fetch(SHARD, tmp_path / "part", most_bytes=1000)


@pytest.mark.parametrize(
    ("fault", "reason"), [("denied", "Access Denied"), ("expired", "The provided token has expired")]
)
def test_refused_credentials_are_named(s3: FaultyServer, tmp_path: Path, fault: str, reason: str) -> None:
    s3.fail_always(SHARD, fault)
    said = rf"^s3://sets/tiny/{SHARD}: permission denied while reading \(.*{reason}.*\)\. Check the credentials .* read"
    with pytest.raises(InputError, match=said):
        Store("s3://sets/tiny").fetch(SHARD, tmp_path / "part")
    with pytest.raises(InputError, match=said):
        Store("s3://sets/tiny").fetch_ranges(SHARD, [(0, 10)])


def test_an_error_says_what_failed_in_one_line(http_store: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstore_client, "NUM_RETRIES", 0)
    http_store.fail(f"/{MANIFEST}", ["error"])
    with pytest.raises(RunError, match=r"reading manifest\.json failed \(.*/manifest\.json.*500 .*\)\. Check the conn"):
        Store(http_store.url).read(MANIFEST)
    closed = "http://127.0.0.1:9"
    with pytest.raises(RunError, match=rf"^{closed}: reading x failed \([^\n]*Connection refused[^\n]*\)\. "):
        Store(closed).read("x")


def test_a_server_that_states_no_lengths_is_refused(http_store: FaultyServer) -> None:
    http_store.fail_always(f"/{MANIFEST}", "unsized")
    with pytest.raises(
        InputError, match=rf"^{http_store.url}: the server does not state the length of its files\. Serve"
    ):
        Store(http_store.url).read(MANIFEST)


@pytest.mark.slow
def test_a_process_that_has_downloaded_ends_without_a_crash(http_store: FaultyServer) -> None:
    command = [sys.executable, "-c", DOWNLOAD_AND_EXIT, http_store.url]
    assert [subprocess.run(command, timeout=60, check=False).returncode for _ in range(40)] == [0] * 40


def test_requests_for_small_objects_are_repeated_and_downloads_are_left_to_the_caller(
    http_store: FaultyServer, tmp_path: Path
) -> None:
    http_store.fail(f"/{MANIFEST}", ["error", "error"])
    assert Store(http_store.url).read(MANIFEST) is not None
    http_store.fail(SHARD, ["error"])
    with pytest.raises(OSError, match="500"):
        Store(http_store.url).fetch(SHARD, tmp_path / "part")
    assert http_store.asked[SHARD] == 1


def test_a_kind_of_store_with_options_of_fsspec_is_opened_with_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    assert isinstance(Store("s3a://sets/tiny")._client(), ObstoreClient)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    assert not isinstance(Store("s3a://sets/tiny")._client(), ObstoreClient)


def test_google_and_azure_are_read_by_their_own_paths(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "devstoreaccount1").mkdir()
    (tmp_path / "scans").symlink_to(tiny_shards.parent)
    (tmp_path / "devstoreaccount1/scans").symlink_to(tiny_shards.parent)
    stored = from_folder(tmp_path)

    def answer(path: str, headers: dict[str, str]) -> Answer:
        code, more, body = stored(path, headers)
        return code, more | {"ETag": '"1"', "Last-Modified": "Fri, 27 Nov 2026 00:00:00 GMT"}, body

    server = FaultyServer(answer)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", server.url)
    data = (tiny_shards / SHARD).read_bytes()
    for address in ("gs://scans", "az://scans", "abfs://scans@devstoreaccount1.dfs.core.windows.net"):
        store = Store(f"{address}/{tiny_shards.name}")
        assert store.fetch_ranges(SHARD, [(5, 50)]) == [data[5:50]]
        assert b"".join(store.stream(SHARD)) == data
    server.close()


@pytest.mark.parametrize("address", ["https://host:port/set", "s3://bucket/a//b", "https://"])
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(InputError, match=rf"^{address}: (this is not an address|the address names no bucket)"):
        Store(address).read("x")


def test_a_certificate_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with pytest.raises(InputError, match=r"^REQUESTS_CA_BUNDLE: .*absent\.pem holds no certificates"):
        Store("https://host/set").read("x")


def test_an_azure_address_without_an_account_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(InputError, match=r"^az://scans/set: no storage account is named\. Set AZURE_STORAGE_ACCOUNT"):
        Store("az://scans/set").read("x")
