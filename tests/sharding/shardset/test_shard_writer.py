import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from upfield.sharding.shardset.shard_index import read_index
from upfield.sharding.shardset.shard_writer import Sample, inspect_shard, write_shard

# A sample takes 9 blocks with headers. A tar record has 20 blocks, so 1 to 20 samples end at every place in a record.
SHAPE = (1, 10, 20)
METADATA = {"é": "ü" * 100}


def sample(number):
    rng = np.random.default_rng(number)
    low, high = rng.random((2, *SHAPE)).astype(np.float16)
    return Sample(f"a-s1-real-0-x{number:03d}", low, high, {"slice": number, "subject": "s1", "metadata": METADATA})


def samples(count):
    return [sample(number) for number in range(count)]


def tar_of(samples):
    """Return the tar that Python's own writer makes from the same members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            record = json.dumps(sample.record, sort_keys=True, separators=(",", ":")).encode()
            for suffix, payload in (("low.npy", npy(sample.low)), ("high.npy", npy(sample.high)), ("json", record)):
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def wds2idx(tar):
    """Return the index that DALI's tools/wds2idx.py makes: a line of `extension offset size name ...` per sample."""
    lines, last = [], None
    with tarfile.open(tar) as file:
        for member in file:
            stem, _, extension = member.name.partition(".")
            if stem != last:
                lines.append([])
                last = stem
            lines[-1] += [extension, str(member.offset_data), str(member.size), member.name]
    return "\n".join([f"v1.2 {len(lines)}", *map(" ".join, lines)]) + "\n"


@pytest.mark.parametrize("count", range(1, 21))
def test_bytes_equal_those_of_pythons_tar_writer(tmp_path, count):
    entry = write_shard(tmp_path, "train/000000", samples(count)).entry
    found = (tmp_path / "train/000000.tar").read_bytes()
    assert found == tar_of(samples(count))
    assert (entry.samples, entry.bytes, entry.sha256) == (count, len(found), hashlib.sha256(found).hexdigest())


@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_checksums_are_those_of_the_samples_stretches(tmp_path, count):
    written = write_shard(tmp_path, "a", samples(count))
    data, starts = (tmp_path / "a.tar").read_bytes(), [9 * 512 * number for number in range(count + 1)]
    assert written.checksums.tolist() == [zlib.crc32(data[start:end]) for start, end in pairwise(starts)]
    described = inspect_shard(tmp_path, "a")
    assert (described.entry, described.checksums.tolist()) == (written.entry, written.checksums.tolist())


def test_index_equals_that_of_dali(tmp_path):
    write_shard(tmp_path, "a", samples(5))
    assert (tmp_path / "a.idx").read_text() == wds2idx(tmp_path / "a.tar")


def test_index_locates_every_member(tmp_path):
    write_shard(tmp_path, "a", samples(4))
    index, data = read_index(tmp_path / "a.idx"), (tmp_path / "a.tar").read_bytes()
    for number, expected in enumerate(samples(4)):
        parts = [data[o : o + s] for o, s in zip(index.offsets[number], index.sizes[number], strict=True)]
        assert index.keys[number] == expected.key.encode()
        np.testing.assert_array_equal(np.load(io.BytesIO(parts[0])), expected.low)
        np.testing.assert_array_equal(np.load(io.BytesIO(parts[1])), expected.high)
        assert json.loads(parts[2]) == expected.record


def test_an_empty_shard_has_an_empty_index(tmp_path):
    assert write_shard(tmp_path, "a", []).entry.samples == 0
    assert read_index(tmp_path / "a.idx").offsets.shape == (0, 4)


# webdataset does not close a tar; the garbage collector does.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_same_samples(tmp_path):
    from webdataset.compat import WebDataset

    write_shard(tmp_path, "a", samples(3))
    dataset: Any = WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()
    read = list(dataset)
    assert [found["__key__"] for found in read] == [expected.key for expected in samples(3)]
    for found, expected in zip(read, samples(3), strict=True):
        np.testing.assert_array_equal(found["low.npy"], expected.low)
        np.testing.assert_array_equal(found["high.npy"], expected.high)
        assert found["json"] == expected.record


def test_a_failure_among_the_samples_leaves_no_file(tmp_path):
    def failing():
        yield sample(0)
        raise RuntimeError("subject lost")

    with pytest.raises(RuntimeError, match="subject lost"):
        write_shard(tmp_path, "train/000000", failing())
    assert list((tmp_path / "train").iterdir()) == []


def test_the_writer_does_not_import_torch_and_leaves_webdataset_complete(tmp_path):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from upfield.sharding.shardset.shard_writer import write_shard\n"
        "write_shard(Path(sys.argv[1]), 'a', [])\n"
        "assert 'torch' not in sys.modules\n"
        "import torch, webdataset\n"
        "assert issubclass(webdataset.WebLoader, webdataset.DataPipeline)\n"
        "assert webdataset.pytorch.DataLoader is torch.utils.data.DataLoader\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
