"""Every command that reads a shard set reads it from an address as from a folder."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_sets import as_by_an_earlier_version
from faulty import FAULTS, FaultyServer, from_folder

from upfield.common.errors import FetchError
from upfield.evaluation.evaluate import main as evaluate
from upfield.export.configuration import ExportConfig
from upfield.export.modelfile.parity_slices import open_parity_set, read_parity_slices
from upfield.export.to_onnx import main as export
from upfield.model.weights import read_best
from upfield.sharding.preview import main as preview
from upfield.sharding.shardset.remote import remote_files
from upfield.sharding.verify import main as verify

SHARD = "val/000000.tar"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote_files, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list of problems of a remote set is written to the current folder."""
    monkeypatch.chdir(tmp_path)


def findings(run_cli: Callable, *arguments: object) -> tuple[int, list[str]]:
    """Verify a set, and return the exit code and the lines about the set, without the set's name."""
    code, out, _ = run_cli(verify, *arguments)
    name = str(arguments[0]).rstrip("/")
    return code, [line.replace(name, "SET") for line in out.splitlines() if "extra files were not" not in line]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def damaged(tiny_shards: Path, tmp_path: Path) -> Path:
    """A set with one problem of every kind."""
    root = shutil.copytree(tiny_shards, tmp_path / "damaged")
    numbers = (root / "train/000000.idx").read_text().splitlines()[1].split()
    overwrite(root / "train/000000.tar", int(numbers[1]) + int(numbers[2]) - 2, np.float16(-0.5).tobytes())
    overwrite(root / "train/000001.tar", 0, b"X")
    (root / "train/000002.tar").write_bytes((root / "train/000002.tar").read_bytes()[:6000])
    (root / "train/000003.tar").unlink()
    (root / "train/000004.idx").unlink()
    for suffix in (".tar", ".idx"):
        shutil.copy(root / f"val/000000{suffix}", root / f"test/000000{suffix}")
    return root


def test_a_set_at_an_address_is_verified_in_one_pass(
    run_cli: Callable, tiny_shards: Path, http_store: FaultyServer, tmp_path: Path
) -> None:
    assert findings(run_cli, f"{http_store.url}/") == findings(run_cli, tiny_shards)
    assert set(http_store.asked.values()) == {1}
    assert not (tmp_path / "cache").exists()
    http_store.asked.clear()
    code, (line,) = findings(run_cli, http_store.url, "--quick")
    # Nothing tells the sizes, so the summary must not claim that they match.
    local = findings(run_cli, tiny_shards, "--quick")[1][0]
    assert (code, line) == (0, local.replace("hashes and voxels were", "sizes, hashes and voxels of the shards were"))
    assert not any(name.endswith(".tar") for name in http_store.asked)


def test_the_same_problems_are_found_at_an_address_and_in_a_folder(run_cli: Callable, damaged: Path) -> None:
    server = FaultyServer(from_folder(damaged))
    try:
        code, lines = findings(run_cli, server.url)
    finally:
        server.close()
    assert (code, lines) == findings(run_cli, damaged)
    assert len(lines) > 8


@pytest.mark.parametrize("damage", ["missing", "no index", "other count"])
def test_a_quick_check_blames_the_same_index_at_an_address_and_in_a_folder(
    run_cli: Callable, tiny_shards: Path, tmp_path: Path, damage: str
) -> None:
    root = shutil.copytree(tiny_shards, tmp_path / "set")
    index = root / "train/000000.idx"
    contents = {"no index": b"hello\n", "other count": index.read_bytes().replace(b"1.2 ", b"1.2 1")}
    index.unlink()
    if damage in contents:
        index.write_bytes(contents[damage])
    with closing(FaultyServer(from_folder(root))) as server:
        code, lines = findings(run_cli, server.url, "--quick")
    assert (code, lines) == findings(run_cli, root, "--quick")
    assert (code, len(lines)) == (2, 1)


def test_the_report_of_an_index_that_cannot_be_parsed_has_one_remedy(
    run_cli: Callable, tiny_shards: Path, tmp_path: Path
) -> None:
    root = as_by_an_earlier_version(shutil.copytree(tiny_shards, tmp_path / "set"))
    (root / "train/000000.idx").write_bytes(b"hello\n")
    with closing(FaultyServer(from_folder(root))) as server:
        code, _, err = run_cli(verify, server.url, "--quick")
    assert (code, err.count(" again.")) == (2, 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_download_that_fails_once_is_repeated(run_cli: Callable, http_store: FaultyServer, fault: str) -> None:
    http_store.fail(SHARD, [fault])
    assert findings(run_cli, http_store.url, "--fetch_timeout_s", 0.5)[0] == 0
    assert http_store.asked[SHARD] == 2


def test_the_check_goes_on_after_a_shard_that_cannot_be_downloaded(run_cli: Callable, http_store: FaultyServer) -> None:
    http_store.fail_always(SHARD, "truncation")
    code, (line,) = findings(run_cli, http_store.url, "--fetch_retries", 1)
    assert code == 1
    assert line.startswith(f"SET/{SHARD}: 2 tries to download")
    assert http_store.asked["test/000000.tar"] == 1


def test_a_shard_that_may_not_be_read_is_the_users_problem(run_cli: Callable, http_store: FaultyServer) -> None:
    right = http_store.answer
    http_store.answer = lambda path, headers: (403, {}, b"") if path.endswith(SHARD) else right(path, headers)
    code, (line,) = findings(run_cli, http_store.url, "--fetch_retries", 1)
    assert (code, http_store.asked[SHARD]) == (2, 1)
    assert line.startswith(f"SET/{SHARD}: permission denied while reading")


def test_extra_files_and_sizes_are_compared_if_the_store_can_list(
    run_cli: Callable, tiny_shards: Path, tmp_path: Path, s3: FaultyServer, s3_server: str
) -> None:
    from s3fs import S3FileSystem

    code, out = findings(run_cli, "s3://sets/tiny/")
    assert (code, out) == findings(run_cli, tiny_shards)
    store = S3FileSystem(key="testing", secret="testing", endpoint_url=s3_server, skip_instance_cache=True)
    store.put(str(tiny_shards), "sets/other", recursive=True)
    store.pipe("sets/other/train/000099.tar", b"")
    store.pipe("sets/other/train/000001.tar", b"short")
    root = shutil.copytree(tiny_shards, tmp_path / "other")
    (root / "train/000099.tar").write_bytes(b"")
    code, lines = findings(run_cli, "s3://sets/other", "--quick")
    size = (root / "train/000001.tar").stat().st_size
    assert lines == [
        findings(run_cli, root, "--quick")[1][0],
        f"SET/train/000001.tar: expected {size} bytes, found 5",
    ]


def test_a_preview_of_an_address_has_the_same_bytes(
    run_cli: Callable, tiny_shards: Path, http_store: FaultyServer, tmp_path: Path
) -> None:
    config = tmp_path / "preview.yaml"
    config.write_text(f"{{shards: '{http_store.url}/', split: val, pairs: 2, cache_dir: {tmp_path / 'shards'}}}")
    assert run_cli(preview, "--config", config, "--out", tmp_path / "remote.png")[0] == 0
    assert run_cli(preview, tiny_shards, "--split", "val", "--pairs", 2, "--out", tmp_path / "local.png")[0] == 0
    assert (tmp_path / "remote.png").read_bytes() == (tmp_path / "local.png").read_bytes()
    assert [name for name in http_store.asked if name.endswith(".tar")] == [SHARD]


def measured(folder: Path) -> dict[str, Any]:
    tree = json.loads((folder / "metrics.json").read_text())
    return {key: tree[key] for key in ("cubic", "model", "groups")}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_of_an_address_has_the_same_metrics(
    run_cli: Callable, tiny_run: Path, tiny_shards: Path, http_store: FaultyServer, tmp_path: Path, processes: int
) -> None:
    for shards, out, count in ((tiny_shards, "local", 1), (f"{http_store.url}/", "remote", processes)):
        arguments = (tiny_run, "--shards", shards, "--out", tmp_path / out, "--perturb", "false")
        assert run_cli(evaluate, *arguments, "--processes", count)[0] == 0
    assert measured(tmp_path / "remote") == measured(tmp_path / "local")
    assert http_store.asked["test/000000.tar"] == 1
    about = json.loads((tmp_path / "remote" / "metrics.json").read_text())["about"]
    assert about["configuration"]["shards"] == f"{http_store.url}/"


def test_an_export_uses_the_address_that_the_run_was_trained_on(
    tiny_run: Path, tiny_shards: Path, http_store: FaultyServer, tmp_path: Path
) -> None:
    best = read_best(tiny_run / "best")
    best = replace(best, config=best.config | {"data": {"shards": http_store.url}})
    config = ExportConfig(tiny_run, tmp_path / "model.onnx", fetch_retries=0)
    local = open_parity_set(replace(config, shards=tiny_shards), best)
    remote = open_parity_set(config, best)
    both = [read_parity_slices(shards, best.context) for shards in (local, remote)]
    assert all((one == other).all() for one, other in zip(*(vars(pairs).values() for pairs in both), strict=True))
    assert [name for name in http_store.asked if name.endswith(".tar")] == [SHARD]
    http_store.fail_always("/manifest.json", "error")
    with pytest.raises(FetchError, match=r"Check the connection, or name a copy of the shard set with --shards\.$"):
        open_parity_set(config, best)


@pytest.mark.parametrize("verb", ["verify", "preview", "evaluate", "export"])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://user:secret@host/set", "https://host/set: write the address with two slashes and without a password"),
        ("s3:/bucket/set", "s3://bucket/set: write the address with two slashes"),
        ("file:///data/set", "file:///data/set: this is a folder of this machine. Write its path without the scheme"),
        ("nonsense://bucket/set", "nonsense://bucket/set: this is not an address such as s3://bucket/folder"),
        ("NOWHERE", "/nowhere/manifest.json: there is no complete shard set at this address. Check --shards"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_in_two_sentences(
    run_cli: Callable, tiny_run: Path, http_store: FaultyServer, tmp_path: Path, verb: str, address: str, message: str
) -> None:
    address = address.replace("NOWHERE", f"{http_store.url}/nowhere/")
    arguments: dict[str, tuple[Callable, tuple[object, ...]]] = {
        "verify": (verify, (address,)),
        "preview": (preview, (address, "--out", tmp_path / "a.png")),
        "evaluate": (evaluate, (tiny_run, "--shards", address, "--out", tmp_path / "report")),
        "export": (export, (tiny_run, "--shards", address, "--out", tmp_path / "model.onnx")),
    }
    code, _, err = run_cli(arguments[verb][0], *arguments[verb][1])
    assert code == 2
    assert message in err
    assert "secret" not in err
    assert err.count(". ") == 1


def test_a_result_cannot_be_written_to_an_address(run_cli: Callable, tiny_shards: Path) -> None:
    code, _, err = run_cli(preview, tiny_shards, "--out", "s3://bucket/grid.png")
    assert code == 2
    assert "out: expected a path on this machine, found the address s3://bucket/grid.png" in err
