import fcntl
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from upfield.sharding.cohort import SPLITS
from upfield.sharding.errors import ShardSetError
from upfield.sharding.manifest import read_manifest
from upfield.sharding.shard import main
from upfield.sharding.shardset import ShardSplit

NUM_SLICES = 20
# A build that the system kills while it writes its fourth shard, the second of a block.
KILLED_BUILD = """
import os, signal, sys
from upfield.sharding import build, shard

def write(root, name, samples, write=build.write_shard):
    return write(root, name, killing(samples) if len(list(root.rglob("[0-9]*.tar"))) == 3 else samples)

def killing(samples):
    yield next(samples)
    os.kill(os.getpid(), signal.SIGKILL)

build.write_shard = write
shard.main(sys.argv[1:])
"""


@pytest.fixture
def cohort(tiny_cohort, tmp_path):
    """A copy of the cohort, free to be changed."""
    return shutil.copytree(tiny_cohort, tmp_path / "cohort")


def arguments(cohort, out, *more):
    return ["--config", str(cohort / "cohorts.yaml"), "--out", str(out), "--jobs", "1", *more]


def contents(root):
    """Bytes of each shard, index and manifest."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def read(split):
    low = np.empty((split.num_samples, *split.low_shape), np.float16)
    high = np.empty((split.num_samples, *split.high_shape), np.float16)
    split.read_into(range(split.num_samples), low, high)
    return low, high


def records(root, split):
    opened = ShardSplit(root, split)
    return [opened.record(number) for number in range(opened.num_samples)]


@pytest.fixture
def killed(tiny_cohort, tmp_path):
    """A set whose build was killed in its fourth shard."""
    out = tmp_path / "shards"
    done = subprocess.run([sys.executable, "-c", KILLED_BUILD, *arguments(tiny_cohort, out)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    return out


def test_the_manifest_says_what_the_set_is(tiny_shards):
    tree = read_manifest(tiny_shards).tree
    assert {split: tree["splits"][split]["samples"] for split in SPLITS} == {"train": 180, "val": 20, "test": 20}
    assert {split: len(tree["splits"][split]["subjects"]) for split in SPLITS} == {"train": 6, "val": 1, "test": 1}
    assert tree["sample"]["low"] == {"shape": [1, 24, 28], "dtype": "float16"}
    assert tree["config"]["samples_per_shard"] == 32
    assert not {"out", "root", "jobs", "executor"} & tree["config"].keys()


def test_a_finished_set_holds_nothing_else(tiny_shards):
    listed = {
        f"{entry.name}.{suffix}"
        for split in SPLITS
        for entry in read_manifest(tiny_shards).shards(split)
        for suffix in ("tar", "idx")
    }
    assert contents(tiny_shards).keys() == listed | {"manifest.json"}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_and_our_reader_read_the_same(tiny_shards):
    from webdataset.compat import WebDataset

    split = ShardSplit(tiny_shards, "train")
    low, high = read(split)
    urls = [str(tiny_shards / f"{entry.name}.tar") for entry in split.entries]
    dataset: Any = WebDataset(urls, shardshuffle=False).decode()
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == [split.key(number) for number in range(180)]
    np.testing.assert_array_equal([sample["low.npy"] for sample in samples], low)
    np.testing.assert_array_equal([sample["high.npy"] for sample in samples], high)


def test_two_jobs_write_the_same_bytes_as_one(run_cli, tiny_cohort, tiny_shards, tmp_path):
    assert run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"), "--jobs", 2)[0] == 0
    assert contents(tmp_path / "shards") == contents(tiny_shards)


def test_synthetic_children_stay_in_their_subjects_split(tiny_shards):
    subjects = {split: {(r["cohort"], r["subject"]) for r in records(tiny_shards, split)} for split in SPLITS}
    assert not subjects["train"] & (subjects["val"] | subjects["test"])
    assert not subjects["val"] & subjects["test"]
    manifest = read_manifest(tiny_shards)
    for split in SPLITS:
        assert subjects[split] == {(s["cohort"], s["subject"]) for s in manifest.subjects(split)}


def test_held_out_samples_are_real_and_in_slice_order(tiny_shards):
    for split in ("val", "test"):
        assert [(r["kind"], r["slice"]) for r in records(tiny_shards, split)] == [
            ("real", x) for x in range(NUM_SLICES)
        ]


def test_held_out_subjects_without_low_field_are_synthetic(run_cli, cohort, tmp_path):
    text = (cohort / "cohorts.yaml").read_text().replace("-T1.nii.gz\n", "-T1.nii.gz\n    split: {val: 1}\n")
    (cohort / "cohorts.yaml").write_text(text)
    assert run_cli(main, *arguments(cohort, tmp_path / "shards"))[0] == 0
    kinds = {(record["cohort"], record["kind"]) for record in records(tmp_path / "shards", "val")}
    assert kinds == {("real", "real"), ("ixi", "synthetic")}


def test_training_shards_mix_subjects_and_kinds(tiny_shards):
    first = records(tiny_shards, "train")[:20]
    assert len({record["subject"] for record in first}) == 2
    assert len({record["slice"] for record in first}) > 8


def test_context_gives_the_neighbouring_slices_and_repeats_the_border(run_cli, tiny_cohort, tiny_shards, tmp_path):
    assert run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"), "--context", 2)[0] == 0
    wide, plain = ShardSplit(tmp_path / "shards", "val"), ShardSplit(tiny_shards, "val")
    (low, high), (middle, plain_high) = read(wide), read(plain)
    assert low.shape == (NUM_SLICES, 5, 24, 28)
    for x in range(NUM_SLICES):
        np.testing.assert_array_equal(low[x], middle[np.clip(np.arange(x - 2, x + 3), 0, NUM_SLICES - 1), 0])
    np.testing.assert_array_equal(high, plain_high)


def test_a_killed_build_is_refused_by_the_reader(killed):
    with pytest.raises(ShardSetError, match="expected a complete shard set, found an unfinished build"):
        ShardSplit(killed, "train")


def test_a_killed_build_is_finished_to_the_same_bytes_without_redoing_shards(run_cli, killed, tiny_cohort, tiny_shards):
    before = {path: path.stat() for path in killed.rglob("*.tar") if not path.name.startswith(".tmp")}
    assert len(before) == 3
    assert list(killed.rglob(".tmp-*.tar"))
    assert run_cli(main, *arguments(tiny_cohort, killed))[0] == 0
    assert contents(killed) == contents(tiny_shards)
    assert all((path.stat().st_ino, path.stat().st_mtime_ns) == (s.st_ino, s.st_mtime_ns) for path, s in before.items())


def test_another_configuration_does_not_finish_a_killed_build(run_cli, killed, tiny_cohort):
    code, _, err = run_cli(main, *arguments(tiny_cohort, killed), "--samples_per_shard", 16)
    assert code == 2
    assert "found another in samples_per_shard: 32 there, 16 now" in err


def test_changed_input_files_do_not_finish_a_killed_build(run_cli, killed, cohort):
    os.utime(cohort / "real/low/sub-00_slice_000.nii.gz", (1, 1))
    code, _, err = run_cli(main, *arguments(cohort, killed))
    assert code == 2
    assert "found them added, removed or changed" in err


def test_a_complete_set_is_left_alone_and_described(run_cli, tiny_cohort, tiny_shards):
    before = {path: path.stat().st_mtime_ns for path in tiny_shards.rglob("*.*") if path.name != ".lock"}
    code, out, err = run_cli(main, *arguments(tiny_cohort, tiny_shards))
    assert code == 0
    assert "complete already" in err
    assert [line.split()[:5] for line in out.splitlines()[1:]] == [
        ["train", "6", "subjects", "180", "samples"],
        ["val", "1", "subjects", "20", "samples"],
        ["test", "1", "subjects", "20", "samples"],
    ]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", 5), "found another in seed: 0 there, 5 now"),
        (("--context", 1), "found another in context: 0 there, 1 now"),
        (("--synthetic.gamma", "[1, 1]"), "found another in synthetic"),
    ],
)
def test_another_configuration_into_a_complete_set_is_refused_with_its_key(
    run_cli, tiny_cohort, tiny_shards, flags, message
):
    code, _, err = run_cli(main, *arguments(tiny_cohort, tiny_shards), *flags)
    assert code == 2
    assert message in err


def test_other_subjects_into_a_complete_set_are_refused(run_cli, cohort, tiny_shards):
    next((cohort / "IXI-T1").iterdir()).unlink()
    code, _, err = run_cli(main, *arguments(cohort, tiny_shards))
    assert code == 2
    assert "expected the 8 subjects it was built from, found 7" in err


def test_a_folder_of_other_things_is_refused_and_left_alone(run_cli, tiny_cohort, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, err = run_cli(main, *arguments(tiny_cohort, tmp_path))
    assert code == 2
    assert "expected a new folder or a shard set, found thesis.txt" in err
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.txt"]


def test_a_second_build_at_once_is_refused(run_cli, tiny_cohort, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run_cli(main, *arguments(tiny_cohort, tmp_path))
    assert code == 2
    assert "expected no other build there, found one running" in err


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_subject_leaves_no_manifest_and_no_partly_written_shard(run_cli, cohort, tiny_shards, tmp_path, jobs):
    damaged = sorted((cohort / "IXI-T1").iterdir())[-1]
    os.truncate(damaged, 5000)
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"), "--jobs", jobs)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"upfield shard: error: {damaged}: expected a readable NIfTI file")
    left = contents(tmp_path / "shards")
    assert "manifest.json" not in left
    expected = contents(tiny_shards)
    assert all(data == expected[name] for name, data in left.items() if name.endswith(".tar"))


def test_a_mended_input_needs_a_new_folder(run_cli, cohort, tiny_cohort, tmp_path):
    damaged = sorted((cohort / "IXI-T1").iterdir())[-1]
    os.truncate(damaged, 5000)
    run_cli(main, *arguments(cohort, tmp_path / "shards"))
    shutil.copy2(tiny_cohort / "IXI-T1" / damaged.name, damaged)
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 2
    assert "delete the folder and build again" in err


def test_no_cohorts_are_refused(run_cli, tmp_path):
    code, _, err = run_cli(main, "--out", tmp_path / "shards")
    assert code == 2
    assert "expected at least one cohort, found none" in err
    assert not (tmp_path / "shards").exists()


def test_one_file_in_two_splits_is_refused(run_cli, cohort, tmp_path):
    with (cohort / "cohorts.yaml").open("a") as file:
        file.write("  - {name: again, high: 'IXI-T1/{subject}-{site}-{scan}-T1.nii.gz', split: {val: [IXI002]}}\n")
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "out"))
    assert code == 2
    assert "expected each file in one split, found it in train (ixi IXI002) and val (again IXI002)" in err
    assert not (tmp_path / "out").exists()


def test_a_stack_that_lost_its_end_is_named(run_cli, cohort, tmp_path):
    (cohort / "real/low/sub-03_slice_005.nii.gz").unlink()
    _, _, err = run_cli(main, *arguments(cohort, tmp_path / "out"))
    assert "low: sub-03 has 5 slices, most have 6" in err
