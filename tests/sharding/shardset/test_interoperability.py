import io
import json
import shutil
import subprocess
import tarfile
from typing import Any

import numpy as np
import pytest
from dali import needs_dali, run_dali

from upfield.sharding.shard import main
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_split import ShardSplit

MEMBERS = ["low.npy", "high.npy", "json"]
# Reads a split with DALI on the CPU and saves the samples; argv holds the archive to write and the tars.
DALI_READER = """
import io, json, sys
import numpy as np
from nvidia.dali import fn, pipeline_def

@pipeline_def(batch_size=16, num_threads=1, device_id=None)
def pipeline(tars, indices):
    members = ["low.npy", "high.npy", "json"]
    return tuple(
        fn.readers.webdataset(
            paths=tars, index_paths=indices, ext=members, missing_component_behavior="error", name="reader"
        )
    )

target, *tars = sys.argv[1:]
reading = pipeline(tars, [tar[:-4] + ".idx" for tar in tars])
reading.build()
size = reading.epoch_size("reader")
samples = []
while len(samples) < size:
    batches = [[bytes(np.asarray(batch.at(i))) for i in range(len(batch))] for batch in reading.run()]
    samples += zip(*batches)
low, high = (np.stack([np.load(io.BytesIO(sample[i])) for sample in samples[:size]]) for i in (0, 1))
np.savez(target, low=low, high=high, json=[sample[2].decode() for sample in samples[:size]])
"""


@pytest.fixture(scope="module")
def shards(tiny_cohort, tmp_path_factory):
    """A set with three channels of low field, in several shards."""
    out = tmp_path_factory.mktemp("interoperability") / "shards"
    arguments = ["--config", tiny_cohort / "cohorts.yaml", "--out", out, "--jobs", 1, "--context", 1]
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture(scope="module", params=SPLITS)
def split(request, shards):
    return ShardSplit(shards, request.param)


def read(split):
    """Read low `(N, 3, 24, 28)`, high `(N, 1, 24, 28)` and records with our own reader."""
    low = np.empty((split.num_samples, *split.low_shape), np.float16)
    high = np.empty((split.num_samples, *split.high_shape), np.float16)
    split.read_into(range(split.num_samples), low, high)
    return low, high, [split.record(number) for number in range(split.num_samples)]


def tars(split):
    return [split.root / f"{entry.name}.tar" for entry in split.entries]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_same_arrays_and_records_by_a_brace_pattern(shards):
    from webdataset.compat import WebDataset

    split = ShardSplit(shards, "train")
    low, high, records = read(split)
    last = len(split.entries) - 1
    assert last > 1
    dataset: Any = WebDataset(f"{shards}/train/{{000000..{last:06d}}}.tar", shardshuffle=False).decode()
    samples = list(dataset)
    np.testing.assert_array_equal([sample["low.npy"] for sample in samples], low)
    np.testing.assert_array_equal([sample["high.npy"] for sample in samples], high)
    assert [sample["json"] for sample in samples] == records
    assert {sample["low.npy"].dtype for sample in samples} == {np.dtype(np.float16)}
    assert all({name for name in sample if not name.startswith("__")} == set(MEMBERS) for sample in samples)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_a_decoded_tuple_in_the_requested_order(shards):
    from webdataset.compat import WebDataset

    split = ShardSplit(shards, "val")
    dataset: Any = WebDataset(f"{shards}/val/000000.tar", shardshuffle=False).decode().to_tuple("high.npy", "low.npy")
    high, low = next(iter(dataset))
    np.testing.assert_array_equal(low, read(split)[0][0])
    np.testing.assert_array_equal(high, read(split)[1][0])


def test_pythons_tarfile_lists_only_three_plain_members_per_sample(split):
    names = [f"{split.key(number)}.{member}" for number in range(split.num_samples) for member in MEMBERS]
    found = []
    for path in tars(split):
        with tarfile.open(path, "r:") as tar:
            found += tar.getmembers()
    assert [member.name for member in found] == names
    assert all(member.isreg() and not member.pax_headers for member in found)
    # Equal samples must make equal bytes, so no owner or time is stored.
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in found} == {(0, 0, "", "", 0)}


def test_pythons_tarfile_and_numpy_read_the_same_samples(split):
    low, high, records = read(split)
    found: list[list[Any]] = [[], [], []]
    for path in tars(split):
        with tarfile.open(path) as tar:
            for number, member in enumerate(tar):
                content = tar.extractfile(member)
                assert content
                kind = number % 3
                found[kind].append(json.load(content) if kind == 2 else np.load(io.BytesIO(content.read())))
    np.testing.assert_array_equal(found[0], low)
    np.testing.assert_array_equal(found[1], high)
    assert found[2] == records


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar program here")
def test_the_system_tar_lists_and_unpacks_a_shard_without_warnings(shards, tmp_path):
    split = ShardSplit(shards, "val")
    (path,) = tars(split)
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    names = [f"{split.key(number)}.{member}" for number in range(split.num_samples) for member in MEMBERS]
    assert (listed.stdout.splitlines(), listed.stderr) == (names, "")
    unpacked = subprocess.run(["tar", "-xf", path, "-C", tmp_path], capture_output=True, text=True, check=True)
    assert unpacked.stderr == ""
    np.testing.assert_array_equal(np.load(tmp_path / names[0]), read(split)[0][0])


@needs_dali
def test_every_index_equals_that_of_dalis_wds2idx_byte_for_byte(split, tmp_path):
    for path in tars(split):
        written = tmp_path / f"{path.stem}.idx"
        run_dali("-m", "wds2idx", path, written)
        assert written.read_bytes() == path.with_suffix(".idx").read_bytes()


@needs_dali
def test_dalis_reader_returns_the_same_arrays_and_records(split, tmp_path):
    run_dali("-c", DALI_READER, tmp_path / "read.npz", *tars(split))
    low, high, records = read(split)
    with np.load(tmp_path / "read.npz") as found:
        np.testing.assert_array_equal(found["low"], low)
        np.testing.assert_array_equal(found["high"], high)
        assert found["low"].dtype == np.float16
        assert [json.loads(text) for text in found["json"]] == records
