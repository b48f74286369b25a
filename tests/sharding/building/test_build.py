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
from built_sets import arguments, contents, records

from upfield.common.errors import ShardSetError
from upfield.sharding.building.block_builder import BlockTask
from upfield.sharding.building.journal import lock_build, read_record, write_record
from upfield.sharding.building.plan import Block
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import find_subjects
from upfield.sharding.configuration import CohortConfig, ShardConfig
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_split import ShardSplit

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


def read(split):
    low = np.empty((split.num_samples, *split.low_shape), np.float16)
    high = np.empty((split.num_samples, *split.high_shape), np.float16)
    split.read_into(range(split.num_samples), low, high)
    return low, high


@pytest.fixture
def killed(tiny_cohort, tmp_path):
    """A set whose build was killed in its fourth shard."""
    out = tmp_path / "shards"
    done = subprocess.run([sys.executable, "-c", KILLED_BUILD, *arguments(tiny_cohort, out)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    return out


def test_the_manifest_describes_the_set(tiny_shards):
    tree = read_manifest(tiny_shards).tree
    assert {split: tree["splits"][split]["samples"] for split in SPLITS} == {"train": 180, "val": 20, "test": 20}
    assert {split: len(tree["splits"][split]["subjects"]) for split in SPLITS} == {"train": 6, "val": 1, "test": 1}
    assert tree["sample"]["low"] == {"shape": [1, 24, 28], "dtype": "float16"}
    assert tree["config"]["samples_per_shard"] == 32
    assert not {"out", "root", "jobs", "executor"} & tree["config"].keys()


def test_a_finished_set_holds_nothing_else(tiny_shards):
    manifest, listed = read_manifest(tiny_shards), {"manifest.json"}
    for split in SPLITS:
        listed |= {f"{entry.name}.{suffix}" for entry in manifest.shards(split) for suffix in ("tar", "idx")}
        listed |= {index.name for index in (manifest.index(split),) if index}
    assert contents(tiny_shards).keys() == listed


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
def test_a_running_ray_cluster_writes_the_same_bytes_and_keeps_running(
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


def test_a_folder_with_other_files_is_refused_and_left_alone(run_cli, tiny_cohort, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, err = run_cli(main, *arguments(tiny_cohort, tmp_path))
    assert code == 2
    assert "this folder is not a shard set; it holds thesis.txt" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_concurrent_build_is_refused(run_cli, tiny_cohort, tmp_path):
    with lock_build(tmp_path / "shards"):
        code, _, err = run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"))
    assert code == 2
    assert "another build is running there" in err


def test_a_configuration_without_cohorts_is_refused(run_cli, tmp_path):
    code, _, err = run_cli(main, "--out", tmp_path / "shards")
    assert code == 2
    assert "No cohorts are configured" in err
    assert not (tmp_path / "shards").exists()


def test_shards_of_a_block_with_other_members_are_not_kept(run_cli, killed, tiny_cohort, tiny_shards):
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
    """Names of opened files, in order. An audit hook cannot be removed, so all tests share one."""

    def note(event, arguments):
        if event == "open" and str(arguments[0]).endswith(".nii.gz"):
            OPENED.append(str(arguments[0]))

    sys.addaudithook(note)
    return OPENED


@pytest.fixture
def parsed(monkeypatch):
    """A list with one entry for each NIfTI header that was parsed from bytes."""
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
