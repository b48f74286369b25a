import io
import json
import os
import re
import shutil
from dataclasses import asdict, replace
from tarfile import TarInfo

import numpy as np
import pytest

from upfield.sharding.shardset.manifest import hash_manifest
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.split_index import describe_index, encode_index
from upfield.sharding.verification.shard_scan import array_problem
from upfield.sharding.verify import main


@pytest.fixture
def shards(tiny_shards, tmp_path):
    """A copy of the set, which a test may damage."""
    return shutil.copytree(tiny_shards, tmp_path / "shards")


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def first_member(shards, number=0, name="train/000000"):
    """Return offset and size of a member of a shard's first sample, from the index."""
    words = (shards / f"{name}.idx").read_text().splitlines()[1].split()
    return int(words[4 * number + 1]), int(words[4 * number + 2])


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def edit_manifest(shards, edit):
    path = shards / "manifest.json"
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def test_a_clean_set_passes_and_its_counts_are_printed(run_cli, tiny_shards):
    code, out, _ = run_cli(main, tiny_shards)
    assert (code, out) == (0, f"{tiny_shards}: 220 samples of 8 subjects match the manifest\n")
    assert run_cli(main, tiny_shards, "--quick")[0] == 0


def test_a_flipped_bit_among_the_voxels_is_found_by_the_hash_alone(run_cli, shards):
    offset, size = first_member(shards)
    tar = shards / "train/000000.tar"
    byte = tar.read_bytes()[offset + size - 2]
    overwrite(tar, offset + size - 2, bytes([byte ^ 1]))
    code, out, err = run_cli(main, shards)
    assert code == 2
    assert "found 1 problem, the first:" in err
    assert out.startswith(f"{tar}: expected sha256")
    assert run_cli(main, shards, "--quick")[0] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1.001])
def test_values_out_of_range_are_found(run_cli, shards, value):
    offset, size = first_member(shards, 1)
    overwrite(shards / "train/000000.tar", offset + size - 2, np.float16(value).tobytes())
    code, out, _ = run_cli(main, shards)
    assert code == 2
    assert "high: expected values in 0..1, found 1 outside" in out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros((1, 2, 3), np.float16)), None),
        (npy(np.zeros((1, 2, 3), np.float16))[:-2], "expected 12 bytes of voxels, found 10"),
        (npy(np.zeros((1, 3, 2), np.float16)), "expected float16 (1, 2, 3) in C order"),
        (npy(np.zeros((1, 2, 3), np.float32)), "found float32 (1, 2, 3)"),
        (npy(np.zeros((1, 2, 3), np.float16, order="F")), "expected float16 (1, 2, 3) in C order"),
        (b"picture", "this is not an npy header"),
        (b"", "this is not an npy header"),
    ],
)
def test_arrays_that_contradict_the_manifest_are_found(data, message):
    member = TarInfo("a.low.npy")
    member.offset_data, member.size = 0, len(data)
    problem = array_problem(io.BytesIO(data), member, (1, 2, 3), np.float16, quick=True)
    assert (problem is None) if message is None else (message in str(problem))


def test_minus_zero_is_in_range(run_cli, shards):
    offset, size = first_member(shards)
    overwrite(shards / "train/000000.tar", offset + size - 2, np.float16(-0.0).tobytes())
    assert "expected values" not in run_cli(main, shards)[1]


@pytest.mark.parametrize("quick", [[], ["--quick"]])
@pytest.mark.parametrize("length", [0, 5120 * 11, 5120 * 11 + 700])
def test_a_truncated_shard_is_found(run_cli, shards, quick, length):
    tar = shards / "val/000000.tar"
    size = tar.stat().st_size
    os.truncate(tar, length)
    code, out, err = run_cli(main, shards, *quick)
    assert code == 2
    assert out.startswith(f"{tar}: expected {size} bytes, found {length}\n")
    assert err.splitlines()[-1].startswith(f"upfield verify: error: {shards}: found ")


@pytest.mark.parametrize("suffix", [".tar", ".idx"])
def test_a_missing_file_is_found(run_cli, shards, suffix):
    path = (shards / "train/000001").with_suffix(suffix)
    path.unlink()
    code, out, _ = run_cli(main, shards, "--quick")
    assert code == 2
    assert f"{path}: the manifest lists this file, but it is missing" in out


@pytest.mark.parametrize("name", ["train/000099.tar", "train/.tmp-7-000001.tar", "more/000000.idx"])
def test_an_extra_file_is_found(run_cli, shards, name):
    (shards / name).parent.mkdir(exist_ok=True)
    (shards / name).write_bytes(b"")
    code, out, _ = run_cli(main, shards, "--quick")
    assert code == 2
    assert out.splitlines() == [f"{shards / name}: the manifest does not list this file, so move it out of the set"]


def test_a_swapped_index_is_found(run_cli, shards):
    first, second = shards / "val/000000.idx", shards / "test/000000.idx"
    texts = first.read_text(), second.read_text()
    first.write_text(texts[1])
    second.write_text(texts[0])
    code, out, _ = run_cli(main, shards, "--quick")
    assert code == 2
    assert [line.partition(": ")[0] for line in out.splitlines()] == [str(first), str(second)]
    assert "line 2: expected 'low.npy 512 " in out


def test_a_shortened_index_is_found(run_cli, shards):
    index = shards / "val/000000.idx"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    assert f"{index}: expected 21 lines, found 20" in run_cli(main, shards, "--quick")[1]


def written_problems(shards):
    return json.loads((shards.parent / f"{shards.name}.verify.json").read_text())["problems"]


def test_swapped_shards_are_found_by_their_subjects(run_cli, shards):
    for suffix in (".tar", ".idx"):
        (shards / f"val/000000{suffix}").rename(shards / "kept")
        (shards / f"test/000000{suffix}").rename(shards / f"val/000000{suffix}")
        (shards / "kept").rename(shards / f"test/000000{suffix}")
    code, out, _ = run_cli(main, shards, "--quick")
    assert code == 2
    assert len(out.splitlines()) == 20
    assert any("is listed in ['test'] and has samples in ['val']" in problem for problem in written_problems(shards))


def test_duplicate_keys_are_found(run_cli, shards):
    for suffix in (".tar", ".idx"):
        shutil.copy(shards / f"val/000000{suffix}", shards / f"test/000000{suffix}")
    out = run_cli(main, shards, "--quick")[1]
    assert f"this key is also in {shards / 'val/000000.tar'}" in out
    assert any("has samples in ['test', 'val']" in problem for problem in written_problems(shards))


def test_a_record_of_another_slice_is_found(run_cli, shards):
    offset, size = first_member(shards, 2)
    tar = shards / "train/000000.tar"
    record = tar.read_bytes()[offset : offset + size]
    other = record.replace(b'"kind":"real"', b'"kind":"fake"').replace(b'"kind":"synthetic"', b'"kind":"imaginary"')
    overwrite(tar, offset, other)
    assert "json: this is the record of another sample" in run_cli(main, shards, "--quick")[1]


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda tree: tree["config"].update(seed=9), "config_sha256"),
        (lambda tree: tree["splits"]["val"]["shards"][0].update(sha256="0" * 64), "data_sha256"),
        (lambda tree: tree["splits"]["val"].update(samples=19), "splits.val.samples"),
        (lambda tree: tree["splits"]["train"]["shards"].pop(), "splits.train.samples"),
        (lambda tree: tree["splits"]["train"]["shards"].reverse(), "splits.train.shards"),
        (lambda tree: tree["sample"]["low"].update(shape=[3, 24, 28]), "sample.low.shape"),
        (lambda tree: tree.update(normalisation="none"), "normalisation"),
        (lambda tree: tree["splits"]["val"]["subjects"].pop(), "must be listed in one split"),
        (lambda tree: tree["skipped"].append({"cohort": "a", "subject": "b", "problems": []}), "manifest_sha256"),
        (lambda tree: tree["alignments"].append({"cohort": "a", "subject": "b"}), "manifest_sha256"),
        (lambda tree: tree["sources"].pop(), "manifest_sha256"),
        (lambda tree: tree["skipped"].append({"cohort": "a"}), "this is not a valid manifest"),
        (lambda tree: tree.update(skipped=None), "this is not a valid manifest"),
        (lambda tree: tree["splits"]["val"].pop("subjects"), "this is not a valid manifest"),
        (lambda tree: tree["sample"]["low"].update(shape=4), "this is not a valid manifest"),
    ],
)
def test_an_edited_manifest_is_found(run_cli, shards, edit, name):
    edit_manifest(shards, edit)
    code, out, _ = run_cli(main, shards, "--quick")
    assert code == 2
    assert any(line.startswith(str(shards / "manifest.json")) and name in line for line in out.splitlines())


def test_a_folder_without_a_manifest_is_refused(run_cli, tmp_path):
    code, _, err = run_cli(main, tmp_path)
    assert code == 2
    assert "there is no shard set here" in err


def test_any_flipped_bit_of_an_arrays_header_is_reported_or_harmless():
    whole = npy(np.zeros((1, 2, 3), np.float16))
    num_reported = 0
    for bit in range(8 * 128):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        member = TarInfo("a-b-real-0-x000.low.npy")
        member.offset_data, member.size = 0, len(content)
        num_reported += array_problem(io.BytesIO(content), member, (1, 2, 3), np.float16, quick=False) is not None
    assert num_reported > 500


@pytest.mark.parametrize("quick", [[], ["--quick"]])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"the manifest lists this file, but it is missing"),
        (lambda path: os.truncate(path, 64), r"expected \d+ bytes, found 64"),
        (lambda path: overwrite(path, 300, b"?"), r"expected sha256 \w+, found \w+"),
    ],
)
def test_an_index_that_is_not_the_listed_one_is_found(run_cli, shards, quick, damage, message):
    (path,) = shards.glob("val-*.index")
    damage(path)
    code, out, _ = run_cli(main, shards, *quick)
    assert code == 2
    assert re.fullmatch(rf"{path}: {message}\n", out)


def test_an_index_that_is_not_listed_is_found(run_cli, shards):
    shutil.copy(next(shards.glob("val-*.index")), shards / "val-0123456789ab.index")
    code, out, _ = run_cli(main, shards)
    assert (code, out) == (
        2,
        f"{shards}/val-0123456789ab.index: the manifest does not list this file, so move it out of the set\n",
    )


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("checksums", 1, r"sample 3 \(\S+\): expected CRC-32 \d+, as in the tar, found \d+"),
        ("slices", 1, r"sample 3: expected real-\S+-x003, as in the tar, found real-\S+-x002"),
        (
            "json_bytes",
            1,
            r"sample 3 \(\S+\): expected members of \d+, \d+, \d+ bytes, as in the tar, found other sizes",
        ),
        ("unit_numbers", 1, r"sample 3: expected real-sub-\d+-real-0-x003, as in the tar, found other-\S+-x003"),
    ],
)
def test_an_index_that_differs_from_the_tars_is_found(run_cli, shards, field, change, message):
    index = ShardSplit(shards, "val").index
    values = getattr(index, field).copy()
    values[3] ^= change
    wrong = encode_index(replace(index, units=[*index.units, ("other", "s", "real", 0)], **{field: values}), "val")
    entry = describe_index(wrong, "val")
    next(shards.glob("val-*.index")).unlink()
    (shards / entry.name).write_bytes(wrong)

    def edit(tree):
        tree["splits"]["val"]["index"] = asdict(entry)
        tree["manifest_sha256"] = hash_manifest(tree)

    edit_manifest(shards, edit)
    code, out, _ = run_cli(main, shards)
    assert code == 2
    assert re.fullmatch(rf"{shards / entry.name}: {message}\n", out)
