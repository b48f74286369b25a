"""People in several splits are reported however a set is built or extended."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from upfield.sharding.building import build as build_module
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.verify import main as verify

GEOMETRY = """\
geometry: {low_shape: [3, 4, 3], low_spacing_mm: [2, 2, 2], high_shape: [5, 6, 4], high_spacing_mm: [1, 1, 1]}
cohorts:
"""
T1 = "  - {name: t1, high: 'sub-{subject}_ses-1_T1w.nii', split: {test: ['01']}}\n"
T2 = "  - {name: t2, high: 'sub-{subject}_ses-1_T2w.nii', split: {test: ['02']}}\n"
FLAT = "  - {name: flat, high: 'sub-{subject}_T1w.nii', split: {test: ['01_ses-1']}}\n"
NAMESAKE = "1 person may be in more than one split, because equal or similar ids are in different splits (01)"
NOTICE = "2 people may be in more than one split, because equal or similar ids are in different splits (01, 02)"


@pytest.fixture
def shard(run_cli, tmp_path):
    """A function that builds or extends a set from cohorts, and returns exit code, stdout and stderr."""
    generator = np.random.default_rng(0)
    for subject in ("01", "02", "03"):
        for scan in ("ses-1_T1w", "ses-2_T1w", "ses-1_T2w"):
            image = nib.Nifti1Image(generator.integers(0, 900, (5, 6, 4), np.int16), np.eye(4))
            image.to_filename(tmp_path / f"sub-{subject}_{scan}.nii")

    def run(cohorts, *flags, out="set"):
        (tmp_path / "cohorts.yaml").write_text(GEOMETRY + cohorts)
        place = out if "://" in out else tmp_path / out
        return run_cli(main, "--config", tmp_path / "cohorts.yaml", "--out", place, "--jobs", 1, *flags)

    return run


def namesakes(tmp_path):
    groups = json.loads((tmp_path / "set.problems.json").read_text())["namesakes"]
    return [[(member["cohort"], member["name"]) for member in g] for g in groups]


@pytest.mark.parametrize(("second", "flags"), [(T2, ()), (T1 + T2, ()), (T2, ("--pseudonymize",))])
def test_namesakes_are_reported_when_a_cohort_is_added(shard, run_cli, tmp_path, second, flags):
    assert NOTICE not in shard(T1, *flags)[2]
    code, out, err = shard(second, *flags)
    assert (code, NOTICE in err) == (0, True)
    assert namesakes(tmp_path) == [[("t1", "01"), ("t2", "01")], [("t1", "02"), ("t2", "02")]]
    # The pseudonyms of a set cannot be compared without its key.
    assert (NOTICE in out) == (NOTICE in run_cli(verify, tmp_path / "set")[2]) == (not flags)


def test_equal_names_are_recognised_behind_pseudonyms_even_without_the_list_of_names(shard, tmp_path):
    shard(T1, "--pseudonymize")
    (tmp_path / "set.key.names.csv").unlink()
    assert NOTICE in shard(T2, "--pseudonymize")[2]


def test_namesakes_are_reported_when_a_remote_set_is_extended(shard, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    arguments = ("--pseudonymize", "--pseudonym_key", tmp_path / "key")
    assert shard(T1, *arguments, out="memory://people/set")[0] == 0
    code, _, err = shard(T2, *arguments, out="memory://people/set")
    assert (code, NOTICE in err) == (0, True)


def test_namesakes_are_reported_when_a_build_is_resumed(shard, monkeypatch):
    shard(T1)
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "seal", lambda *_: sys.exit(9))
        assert shard(T2)[0] == 9
    assert NOTICE in shard(T2)[2]


def test_namesakes_that_are_left_out_are_not_reported(shard, tmp_path):
    shard(T1)
    (tmp_path / "sub-02_ses-1_T2w.nii").write_bytes(b"no scan")
    code, _, err = shard(T2, "--on_error", "skip")
    assert code == 0
    assert NAMESAKE in err


def test_subjects_that_were_left_out_earlier_are_not_in_the_set(shard, tmp_path):
    (tmp_path / "sub-02_ses-1_T1w.nii").write_bytes(b"no scan")
    assert shard(T1, "--on_error", "skip")[0] == 0
    assert NAMESAKE in shard(T1 + T2)[2]


@pytest.mark.parametrize("flags", [(), ("--pseudonymize",)])
def test_sessions_of_a_person_in_two_splits_are_a_doubt_in_report_and_manifest(shard, tmp_path, flags):
    code, _, err = shard(FLAT, *flags)
    assert (code, NAMESAKE.partition(" (")[0] in err) == (0, True)
    # Noise is doubtful too: it has no air.
    doubts = json.loads((tmp_path / "set.problems.json").read_text())["doubts"]
    (doubt,) = [doubt for doubt in doubts if doubt["check"] == "person"]
    assert (doubt["cohort"], doubt["subject"]) == ("flat", "01_ses-1")
    assert "this scan in test and one in train show the same person" in doubt["message"]
    manifest = read_manifest(tmp_path / "set")
    (tree,) = [tree for tree in manifest.doubts if any(problem["check"] == "person" for problem in tree["problems"])]
    assert (tree["subject"] == "01_ses-1") == (not flags)
    assert sum(len(manifest.subjects(split)) for split in SPLITS) == 6


def test_sessions_held_out_together_are_no_doubt(shard, tmp_path):
    _, _, err = shard(FLAT.replace("['01_ses-1']", "['01_ses-1', '01_ses-2']"))
    assert "more than one split" not in err
    assert '"person"' not in (tmp_path / "set.problems.json").read_text()
