import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from upfield.common.errors import ShardSetError
from upfield.sharding.building import build as build_module
from upfield.sharding.building.block_builder import BlockTask
from upfield.sharding.building.journal import lock_build, read_record, write_record
from upfield.sharding.building.plan import Block
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import SPLITS, find_subjects
from upfield.sharding.configuration import CohortConfig, ShardConfig
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.verify import main as verify

NUM_SLICES = 20
# A build that is killed while it writes its fourth shard, the second of a block.
KILLED_BUILD = """
import os, signal, sys
from upfield.sharding.building import block_builder as block
from upfield.sharding import shard

def write(root, name, samples, write=block.write_shard):
    return write(root, name, killing(samples) if len(list(root.rglob("[0-9]*.tar"))) == 3 else samples)

def killing(samples):
    yield next(samples)
    os.kill(os.getpid(), signal.SIGKILL)

block.write_shard = write
shard.main(sys.argv[1:])
"""


@pytest.fixture
def cohort(tiny_cohort, tmp_path):
    """A copy of the cohort that tests may change."""
    return shutil.copytree(tiny_cohort, tmp_path / "cohort")


def arguments(cohort, out, *more):
    return ["--config", str(cohort / "cohorts.yaml"), "--out", str(out), "--jobs", "1", *more]


def contents(root):
    """Bytes of each shard, index and manifest."""
    paths = (path for path in root.rglob("*") if path.is_file())
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


def run_on_ray(cohort, out, address):
    """Run the command in a separate process; return what it wrote."""
    command = [sys.executable, "-m", "upfield.sharding.shard", *arguments(cohort, out), "--executor", "ray"]
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return contents(out)


def test_ray_writes_the_same_bytes(tiny_cohort, tiny_shards, tmp_path):
    assert run_on_ray(tiny_cohort, tmp_path / "shards", "local") == contents(tiny_shards)


@pytest.mark.slow
def test_a_ray_cluster_that_is_there_already_writes_the_same_bytes_and_stays(
    tiny_cohort, tiny_shards, tmp_path, short_folder
):
    ray = Path(sys.executable).with_name("ray")
    start = [
        ray,
        "start",
        "--head",
        "--num-cpus=2",
        "--port=26379",
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--temp-dir={short_folder}",
    ]
    subprocess.run(start, check=True, capture_output=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"})
    try:
        for name in ("one", "two"):
            assert run_on_ray(tiny_cohort, tmp_path / name, "127.0.0.1:26379") == contents(tiny_shards)
    finally:
        subprocess.run([ray, "stop", "--force"], check=True, capture_output=True)


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
    with pytest.raises(ShardSetError, match="the shard set is not finished"):
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
    assert "built with samples_per_shard = 32, but now it is 16" in err


def test_blocks_whose_input_changed_are_built_again_and_the_others_kept(run_cli, killed, cohort, tiny_shards):
    before = {path.name: path.stat().st_mtime_ns for path in (killed / "train").glob("[0-9]*.tar")}
    changed = {s["subject"] for s in records(tiny_shards, "train")[:1]}.pop()
    for path in cohort.rglob(f"{changed}*"):
        os.utime(path, (1, 1))
    assert run_cli(main, *arguments(cohort, killed))[0] == 0
    after = {path.name: path.stat().st_mtime_ns for path in (killed / "train").glob("[0-9]*.tar")}
    assert {name for name, time in before.items() if after[name] == time} == {"000002.tar"}
    assert contents(killed) == contents(tiny_shards)


def test_a_complete_set_is_left_alone_and_described(run_cli, tiny_cohort, tiny_shards):
    before = {path: path.stat().st_mtime_ns for path in tiny_shards.rglob("*.*")}
    code, out, err = run_cli(main, *arguments(tiny_cohort, tiny_shards))
    assert code == 0
    assert "already complete" in err
    assert [line.split()[:5] for line in out.splitlines()[1:]] == [
        ["train", "6", "subjects", "180", "samples"],
        ["val", "1", "subjects", "20", "samples"],
        ["test", "1", "subjects", "20", "samples"],
    ]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", 5), "built with seed = 0, but now it is 5"),
        (("--context", 1), "built with context = 0, but now it is 1"),
        (("--synthetic.gamma", "[1, 1]"), "built with synthetic"),
    ],
)
def test_another_configuration_into_a_complete_set_is_refused_with_its_key(
    run_cli, tiny_cohort, tiny_shards, flags, message
):
    code, _, err = run_cli(main, *arguments(tiny_cohort, tiny_shards), *flags)
    assert code == 2
    assert message in err


def test_other_subjects_into_a_complete_set_are_refused(run_cli, cohort, tiny_shards):
    sorted((cohort / "IXI-T1").iterdir())[0].unlink()
    code, _, err = run_cli(main, *arguments(cohort, tiny_shards))
    assert code == 2
    assert "expected the 8 subjects that the set was built from, found 1 fewer" in err


def test_a_folder_of_other_things_is_refused_and_left_alone(run_cli, tiny_cohort, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, err = run_cli(main, *arguments(tiny_cohort, tmp_path))
    assert code == 2
    assert "this folder is not a shard set, and it holds thesis.txt" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_build_at_once_is_refused(run_cli, tiny_cohort, tmp_path):
    with lock_build(tmp_path / "shards"):
        code, _, err = run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"))
    assert code == 2
    assert "another build is running there" in err


@pytest.fixture
def damaged(cohort):
    """One of the cohort's training volumes, with a NaN voxel, which no header shows."""
    path = sorted((cohort / "IXI-T1").iterdir())[-1]
    spoil(path)
    return path


def spoil(path):
    image = nib.Nifti1Image.from_filename(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[3, 4, 5] = np.nan
    nib.Nifti1Image(voxels, image.affine).to_filename(path)


@pytest.mark.parametrize("jobs", [1, 2])
def test_voxels_that_cannot_be_used_are_reported_at_the_end_and_the_rest_is_kept(
    run_cli, cohort, damaged, tiny_shards, tmp_path, jobs
):
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"), "--jobs", jobs)
    assert code == 2
    assert f"{damaged}: voxels must be finite, but 1 are NaN or infinite" in err
    assert "--on_error skip --max_skipped 1." in err.splitlines()[-1]
    (problem,) = json.loads((tmp_path / "shards.problems.json").read_text())["problems"]
    assert (problem["cohort"], problem["check"], problem["file"]) == ("ixi", "voxels", str(damaged))
    left, expected = contents(tmp_path / "shards"), contents(tiny_shards)
    assert "manifest.json" not in left
    kept = [name for name in left if name.endswith(".tar")]
    assert len(kept) > 4
    assert all(left[name] == expected[name] for name in kept)


def test_only_a_fixed_input_is_read_again(run_cli, cohort, damaged, tiny_cohort, tiny_shards, tmp_path):
    run_cli(main, *arguments(cohort, tmp_path / "shards"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.tar")}
    shutil.copy2(tiny_cohort / "IXI-T1" / damaged.name, damaged)
    code, _, _ = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path / "shards") == contents(tiny_shards)
    assert not (tmp_path / "shards.problems.json").exists()


def test_skipped_subjects_are_counted_and_named_with_their_reason(run_cli, cohort, damaged, tmp_path):
    (cohort / "real/low/sub-03_slice_002.nii.gz").unlink()
    flags = ("--on_error", "skip", "--max_skipped", 2)
    code, out, _ = run_cli(main, *arguments(cohort, tmp_path / "shards"), *flags)
    assert code == 0
    skipped = read_manifest(tmp_path / "shards").skipped
    name = damaged.name.split("-")[0]
    reported = [(s["cohort"], s["subject"], [(p["field"], p["check"]) for p in s["problems"]]) for s in skipped]
    assert reported == [("ixi", name, [("high", "voxels")]), ("real", "sub-03", [("low", "slices")])]
    assert "left out: 2 subjects" in out
    assert "real sub-03: low: 1 of the slices 0 to 5 are missing (2)" in out
    assert str(cohort) not in (tmp_path / "shards/manifest.json").read_text()
    present = {r["subject"] for split in SPLITS for r in records(tmp_path / "shards", split)}
    assert len(present) == 6
    assert not present & {name, "sub-03"}
    assert run_cli(verify, tmp_path / "shards")[0] == 0


def test_what_skipping_leaves_does_not_depend_on_jobs_or_on_a_first_try_without_it(run_cli, cohort, damaged, tmp_path):
    skip = ("--on_error", "skip")
    assert run_cli(main, *arguments(cohort, tmp_path / "one"), *skip)[0] == 0
    assert run_cli(main, *arguments(cohort, tmp_path / "two"))[0] == 2
    assert run_cli(main, *arguments(cohort, tmp_path / "two"), *skip, "--jobs", 2)[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_block_of_which_nothing_is_left_has_no_shards(run_cli, cohort, tmp_path):
    flags = ("--on_error", "skip", "--subjects_per_block", 1)
    spoil(next((cohort / "IXI-T1").iterdir()))
    assert run_cli(main, *arguments(cohort, tmp_path / "shards"), *flags)[0] == 0
    assert run_cli(verify, tmp_path / "shards")[0] == 0
    assert ShardSplit(tmp_path / "shards", "train").num_samples == 160


def test_more_skipped_subjects_than_allowed_are_refused(run_cli, cohort, damaged, tmp_path):
    (cohort / "real/low/sub-03_slice_002.nii.gz").unlink()
    flags = ("--on_error", "skip", "--max_skipped", 1)
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"), *flags)
    assert code == 2
    assert "have 2 problems, listed above" in err
    assert not (tmp_path / "shards/manifest.json").exists()


def test_problems_of_headers_are_reported_together_before_anything_is_written(run_cli, cohort, tmp_path):
    (cohort / "real/low/sub-03_slice_002.nii.gz").unlink()
    for path in cohort.glob("real/high/sub-01_*"):
        path.unlink()
    volume = next((cohort / "IXI-T1").iterdir())
    volume.write_bytes(b"no volume")
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 2
    assert "3 of 8 subjects have 3 problems" in err
    assert not (tmp_path / "shards").exists()


def test_no_cohorts_are_refused(run_cli, tmp_path):
    code, _, err = run_cli(main, "--out", tmp_path / "shards")
    assert code == 2
    assert "No cohorts are configured" in err
    assert not (tmp_path / "shards").exists()


def test_one_file_under_two_names_is_refused(run_cli, cohort, tmp_path):
    with (cohort / "cohorts.yaml").open("a") as file:
        file.write("  - {name: again, high: 'IXI-T1/{subject}-{site}-{scan}-T1.nii.gz', split: {val: [IXI002]}}\n")
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "out"))
    assert code == 2
    assert " subjects have 6 problems" in err
    assert not (tmp_path / "out").exists()


def test_a_stack_that_lost_its_end_is_named(run_cli, cohort, tmp_path):
    (cohort / "real/low/sub-03_slice_005.nii.gz").unlink()
    _, _, err = run_cli(main, *arguments(cohort, tmp_path / "out"))
    assert (
        "low: sub-03: most stacks of this cohort cover 30 mm, but this one covers 25 mm. Check that it is complete."
        in err
    )


def test_shards_of_a_block_with_other_members_are_not_kept(run_cli, killed, tiny_cohort, tiny_shards):
    """Fail as a worker does that runs out of a resource, whatever its subject."""
    (path,) = (killed / ".build").glob("train-000002.json")
    record = read_record(killed, path.stem)
    assert record is not None
    write_record(killed, path.stem, replace(record, sizes=dict.fromkeys(record.sizes, 1)))
    assert run_cli(main, *arguments(tiny_cohort, killed))[0] == 0
    assert contents(killed) == contents(tiny_shards)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--save_volumes", "s3://bucket/volumes"),
            "save_volumes: expected a path on this machine, found",
        ),
        (("--out", "local:///data/set"), "--out: expected a folder or an address like s3://bucket/set, found local:"),
        (("--save_volumes", "cohort/cohorts.yaml"), "cohorts.yaml is a file, not a folder"),
        (("--pseudonym_key", "my.key"), "has no effect without --pseudonymize"),
        (("--seed", "-1"), "seed: expected at least 0, found -1"),
        (("--save_volumes", "s3://me:secret@host/x"), "found the address s3://host/x"),
        (("--out", "s3:/bucket/set"), "--out: expected a folder or an address like s3://bucket/set, found s3:/bucket"),
        (("--out", "cohort/cohorts.yaml"), "cohorts.yaml: this is a file, not a folder. Choose another --out."),
    ],
)
def test_impossible_destinations_are_refused_at_once(run_cli, cohort, tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"), *flags)
    assert code == 2
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def test_pairs_that_lie_in_different_places_are_reported_and_built(run_cli, cohort, tmp_path):
    for path in cohort.glob("real/low/sub-01_*"):
        image = nib.Nifti1Image.from_filename(path)
        affine = np.array(image.affine)
        affine[1, 3] += 15
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    code, out, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 0
    assert "1 doubts of 1 subjects\nThese subjects are still included" in err
    said = "some are 15 mm apart posterior-anterior"
    for _ in range(2):
        assert "in doubt: 1 subjects" in out
        assert said in out
        # A second run, which has nothing to do, reports it again.
        code, out, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
        assert (code, "already complete" in err) == (0, True)
    (doubt,) = json.loads((tmp_path / "shards.problems.json").read_text())["doubts"]
    assert (doubt["subject"], doubt["check"]) == ("sub-01", "place")
    (listed,) = read_manifest(tmp_path / "shards").doubts
    assert (listed["cohort"], listed["subject"]) == ("real", "sub-01")
    assert said in listed["problems"][0]["reason"]
    assert run_cli(verify, tmp_path / "shards")[0] == 0


def repacked(path, folder):
    target = folder / "copy-x-9-T1.nii"
    target.write_bytes(gzip.decompress(path.read_bytes()))


def rewritten(path, folder):
    image = nib.Nifti1Image.from_filename(path)
    image.header["descrip"] = b"made anew"
    image.to_filename(folder / "copy-x-9-T1.nii.gz")


def turned(path, folder):
    nib.as_closest_canonical(nib.Nifti1Image.from_filename(path)).to_filename(folder / "copy-x-9-T1.nii.gz")


@pytest.fixture
def copied(cohort):
    """A function that puts a copy of one of the cohort's scans, and a new scan, into a second cohort."""

    def put(copy):
        (cohort / "more").mkdir()
        copy(next(cohort.glob("IXI-T1/IXI003*")), cohort / "more")
        image = nib.Nifti1Image.from_filename(next(cohort.glob("IXI-T1/IXI002*")))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), cohort / "more/new-x-8-T1.nii.gz")
        text = (cohort / "cohorts.yaml").read_text()
        more = "  - {name: more, high: 'more/{subject}-x-*-T1.*'}\n"
        (cohort / "cohorts.yaml").write_text(text + more)
        (cohort / "more.yaml").write_text(text.partition("  - name")[0] + more)

    return put


def copies_reported(err, out):
    assert "1 scans are copies of others" in err
    (problem,) = json.loads(out.with_name(f"{out.name}.problems.json").read_text())["problems"]
    return (problem["cohort"], problem["check"]) == ("more", "same") and problem["file"].endswith("= ixi IXI003")


@pytest.mark.parametrize("copy", [rewritten, turned])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_scan_that_comes_twice_in_different_files_is_refused(run_cli, cohort, copied, tmp_path, copy, on_error):
    copied(copy)
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"), "--on_error", on_error)
    assert code == 2
    assert copies_reported(err, tmp_path / "shards")
    assert not (tmp_path / "shards/manifest.json").exists()
    next(cohort.glob("more/copy*")).unlink()
    assert run_cli(main, *arguments(cohort, tmp_path / "shards"))[0] == 0
    assert not (tmp_path / "shards.problems.json").exists()


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        (repacked, "the set already holds a scan with the same content"),
        (rewritten, "1 scans are copies of others"),
        (turned, "1 scans are copies of others"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--pseudonymize",)])
def test_a_scan_that_the_set_holds_from_another_file_does_not_extend_it(
    run_cli, cohort, copied, tiny_cohort, tmp_path, copy, said, flags
):
    copied(copy)
    out = tmp_path / "set"
    assert run_cli(main, *arguments(tiny_cohort, out), *flags)[0] == 0
    before = contents(out)
    code, _, err = run_cli(main, "--config", cohort / "more.yaml", "--out", out, "--jobs", 1, *flags)
    assert code == 2
    assert said in " ".join(err.split())
    after = contents(out)
    assert {name: after[name] for name in before} == before


def test_people_of_one_name_in_several_cohorts_and_splits_are_reported(run_cli, cohort, tmp_path):
    (cohort / "again").mkdir()
    for path in cohort.glob("IXI-T1/*"):
        image = nib.Nifti1Image.from_filename(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), cohort / "again" / path.name)
    text = (cohort / "cohorts.yaml").read_text()
    again = "  - {name: again, high: 'again/{subject}-{site}-{scan}-T1.nii.gz', split: {test: [IXI003]}}\n"
    (cohort / "cohorts.yaml").write_text(text + again)
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 0
    assert "1 names occur in several cohorts and in different splits (IXI003)" in err


def test_a_different_geometry_is_reported_by_its_key(run_cli, cohort, tiny_shards, tmp_path):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"), "--geometry.high_shape", "[20, 24, 30]")
    assert code == 2
    assert "built with geometry.high_shape = [20, 24, 28], but now it is [20, 24, 30]" in err


def test_an_empty_split_is_reported(run_cli, cohort, tmp_path):
    text = (cohort / "cohorts.yaml").read_text()
    (cohort / "cohorts.yaml").write_text(text.replace("split: {val: 1, test: 1}", "split: {val: 1}"))
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 0
    assert f"{tmp_path / 'shards'}: no subjects in test. Training needs" in err
    assert "no subjects in val" not in err


def test_a_gap_hides_no_other_fault(run_cli, cohort, tmp_path):
    paths = sorted(cohort.glob("real/high/sub-01_*"))
    paths[5].unlink()
    image = nib.Nifti1Image.from_filename(paths[8])
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 1), np.int16), image.affine), paths[8])
    assert run_cli(main, *arguments(cohort, tmp_path / "shards"))[0] == 2
    problems = json.loads((tmp_path / "shards.problems.json").read_text())["problems"]
    assert [(p["subject"], p["check"]) for p in problems] == [("sub-01", "slices"), ("sub-01", "slices")]
    said = " ".join(problem["message"] for problem in problems)
    assert "1 of the slices" in said
    assert "like the first of its stack, found (9, 9)" in said


def test_a_gap_is_reported_once_and_its_wider_step_is_not_taken_as_spacing(run_cli, cohort, tmp_path):
    for path in sorted(cohort.glob("real/low/sub-01_*"))[2:4]:
        path.unlink()
    assert run_cli(main, *arguments(cohort, tmp_path / "shards"))[0] == 2
    (problem,) = json.loads((tmp_path / "shards.problems.json").read_text())["problems"]
    assert (problem["subject"], problem["field"], problem["check"]) == ("sub-01", "low", "slices")
    assert "2 of the slices" in problem["message"]


def test_the_lock_is_taken_while_another_build_ends(tmp_path, monkeypatch):
    times = iter(range(3))
    plain = Path.open

    def opened(path, *arguments, **options):
        if path.name == "lock" and next(times, None) is not None:
            shutil.rmtree(path.parent)
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    with lock_build(tmp_path / "shards"):
        assert (tmp_path / "shards/.build/lock").is_file()
    assert not (tmp_path / "shards").exists()


OPENED: list[str] = []


@pytest.fixture(scope="module")
def watched():
    """Names of the files that are opened, in order; an audit hook cannot be removed, so there is one for all tests."""

    def note(event, arguments):
        if event == "open" and str(arguments[0]).endswith(".nii.gz"):
            OPENED.append(str(arguments[0]))

    sys.addaudithook(note)
    return OPENED


@pytest.fixture
def parsed(monkeypatch):
    """A list that grows by one for each NIfTI header that is parsed from bytes."""
    parses: list[int] = []
    plain = nib.Nifti1Header.__init__

    def counted(self, binaryblock=None, *arguments, **options):
        if binaryblock is not None:
            parses.append(len(binaryblock))
        plain(self, binaryblock, *arguments, **options)

    monkeypatch.setattr(nib.Nifti1Header, "__init__", counted)
    return parses


def test_each_compressed_file_is_opened_twice_and_its_header_parsed_once(
    run_cli, watched, parsed, tiny_cohort, tiny_shards, tmp_path
):
    watched.clear()
    assert run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"))[0] == 0
    files = [str(path) for path in tiny_cohort.rglob("*.nii.gz")]
    assert {path: watched.count(path) for path in files} == dict.fromkeys(files, 2)
    assert len(parsed) == len(files)
    assert contents(tmp_path / "shards") == contents(tiny_shards)


def test_a_complete_set_opens_each_compressed_file_once_and_parses_no_header(
    run_cli, watched, parsed, tiny_cohort, tiny_shards
):
    watched.clear()
    assert run_cli(main, *arguments(tiny_cohort, tiny_shards))[0] == 0
    assert max(watched.count(path) for path in watched) == 1
    assert parsed == []


def test_a_file_that_is_replaced_after_its_header_was_read_is_refused(
    run_cli, monkeypatch, cohort, tiny_shards, tmp_path
):
    path = sorted((cohort / "IXI-T1").iterdir())[0]

    def replace_file(*arguments, plan=build_module.plan_build):
        image = nib.Nifti1Image.from_filename(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, ::-1], image.affine), path)
        return plan(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "plan_build", replace_file)
        code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 2
    assert f"{path}: this file changed after its header was read" in err


def test_a_stack_of_many_slices_is_a_small_task(tmp_path):
    for field in ("low", "high"):
        (tmp_path / field).mkdir()
        for number in range(200):
            affine = np.eye(4)
            affine[2, 3] = number
            voxels = np.full((4, 5, 1), number, np.int16)
            voxels[0, 0, 0] = field == "low"
            nib.Nifti1Image(voxels, affine).to_filename(tmp_path / field / f"a_{number}.nii.gz")
    cohort = CohortConfig("a", "high/{subject}_{slice}.nii.gz", "low/{subject}_{slice}.nii.gz")
    (subject,) = preflight(find_subjects(cohort, tmp_path).subjects).subjects
    task = BlockTask(Block("train", (subject,), 0, 1), "", ShardConfig(out=str(tmp_path)), tmp_path)
    # Paths of this length take about 60 bytes each, traces 20.
    assert len(pickle.dumps(task)) < 400 * 120
