"""Extend a set with a cohort."""

import json
import os
import shutil
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
from built_sets import as_by_an_earlier_version, contents

from upfield.sharding.building import block_builder as block
from upfield.sharding.building import build, manifest_writer
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import hash_manifest, hash_tree, read_manifest
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.verify import main as verify

NEW = "  - {name: site_b, high: 'B/{subject}-x.nii.gz', split: {val: 1}}\n"


@pytest.fixture
def cohort(tiny_cohort, tmp_path):
    """The files of the cohort and of a new cohort; cohorts.yaml lists only the new one."""
    folder = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    (folder / "B").mkdir()
    for number, path in enumerate(sorted((folder / "IXI-T1").iterdir())):
        image = nib.Nifti1Image.from_filename(path)
        voxels = np.asarray(image.dataobj)[::-1] + number
        nib.Nifti1Image(voxels, image.affine).to_filename(folder / f"B/b{number}-x.nii.gz")
    text = (folder / "cohorts.yaml").read_text()
    (folder / "both.yaml").write_text(text + NEW)
    (folder / "cohorts.yaml").write_text(text.partition("  - name")[0] + NEW)
    return folder


@pytest.fixture
def old_cohort(tiny_cohort):
    """The cohort as the set was built from it."""
    return tiny_cohort


@pytest.fixture
def out(tiny_shards, tmp_path):
    """A copy of the set."""
    return shutil.copytree(tiny_shards, tmp_path / "shards")


def arguments(cohort, out, file="cohorts.yaml"):
    return ["--config", str(cohort / file), "--out", str(out), "--jobs", "1"]


def state(root):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in root.glob("*/*.*")}


def subjects_of(manifest):
    return {split: [(s["cohort"], s["subject"]) for s in manifest.subjects(split)] for split in SPLITS}


@pytest.mark.parametrize("file", ["cohorts.yaml", "both.yaml"])
def test_an_extension_adds_shards_and_touches_none_of_the_old_ones(run_cli, cohort, out, file):
    before, old = state(out), read_manifest(out)
    assert run_cli(main, *arguments(cohort, out, file))[0] == 0
    after, new = state(out), read_manifest(out)
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)
    for split in SPLITS:
        assert new.shards(split)[: len(old.shards(split))] == old.shards(split)
        assert subjects_of(new)[split][: len(old.subjects(split))] == subjects_of(old)[split]
    added = {split: subjects_of(new)[split][len(old.subjects(split)) :] for split in SPLITS}
    assert {cohort for its in added.values() for cohort, _ in its} == {"site_b"}
    assert [len(added[split]) for split in SPLITS] == [2, 1, 0]
    assert run_cli(verify, out)[0] == 0
    assert ShardSplit(out, "train").num_samples == 180 + 40


def test_the_new_cohort_alone_and_with_the_old_ones_give_the_same_set(run_cli, cohort, out, tmp_path):
    other = shutil.copytree(out, tmp_path / "other")
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert run_cli(main, *arguments(cohort, other, "both.yaml"))[0] == 0
    contents = [{path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")} for root in (out, other)]
    assert contents[0] == contents[1]


def test_a_complete_extension_is_left_alone(run_cli, cohort, out):
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    before = state(out)
    for file in ("cohorts.yaml", "both.yaml"):
        code, _, err = run_cli(main, *arguments(cohort, out, file))
        assert code == 0
        assert "already complete" in err
    assert state(out) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "samples_per_shard: 32",
            "samples_per_shard: 31",
            "built with samples_per_shard = 32, but now it is 31",
        ),
        ("subjects_per_block: 2", "seed: 3\nsubjects_per_block: 2", "built with seed = 0, but now it is 3"),
        ("high_shape: [20, 24, 28]", "high_shape: [20, 24, 30]", "built with geometry"),
        ("split: {val: 1, test: 1}", "split: {val: 2, test: 1}", "built with cohorts.real.split"),
        ("real/low/{subject}", "real/../real/low/{subject}", "built with cohorts.real.low"),
    ],
)
def test_a_configuration_that_does_not_fit_the_set_is_refused_with_its_key(run_cli, cohort, out, old, new, message):
    before = state(out)
    text = (cohort / "both.yaml").read_text()
    (cohort / "both.yaml").write_text(text.replace(old, new))
    code, _, err = run_cli(main, *arguments(cohort, out, "both.yaml"))
    assert code == 2
    assert message in err
    assert state(out) == before


def test_a_set_that_states_no_averaging_was_built_without(run_cli, cohort, out):
    path = out / "manifest.json"
    tree = json.loads(path.read_text())
    assert tree["config"]["geometry"].pop("average") is False
    tree["config_sha256"] = hash_tree(tree["config"])
    path.write_text(json.dumps(tree | {"manifest_sha256": hash_manifest(tree)}))
    text = (cohort / "cohorts.yaml").read_text()
    (cohort / "cohorts.yaml").write_text(text.replace("geometry: {", "geometry: {average: true, "))
    code, _, err = run_cli(main, *arguments(cohort, out))
    assert (code, "geometry.average" in err) == (2, True)
    (cohort / "cohorts.yaml").write_text(text)
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert read_manifest(out).tree["config"]["geometry"]["average"] is False


def test_an_interrupted_extension_leaves_a_set_that_is_read_and_is_finished_later(
    run_cli, cohort, out, old_cohort, monkeypatch
):
    before = state(out)
    plain = block.write_shard

    def interrupted(root, name, samples):
        if name.startswith("val"):
            raise KeyboardInterrupt
        return plain(root, name, samples)

    with monkeypatch.context() as patch:
        patch.setattr(block, "write_shard", interrupted)
        assert run_cli(main, *arguments(cohort, out))[0] == 130
    left = state(out)
    assert {path: left[path] for path in before} == before
    assert ShardSplit(out, "train").num_samples == 180
    code, found, _ = run_cli(verify, out)
    assert code == 2
    assert "an extension of this set is not finished" in found
    # The set itself is complete. Its own configuration neither finishes nor discards the extension.
    code, _, err = run_cli(main, *arguments(old_cohort, out))
    assert (code, "an extension of it is unfinished" in err) == (0, True)
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert run_cli(verify, out)[0] == 0


def test_a_build_killed_between_its_manifest_and_its_end_does_not_hinder_an_extension(
    run_cli, cohort, out, old_cohort, monkeypatch
):
    shutil.rmtree(out)
    with monkeypatch.context() as patch:
        patch.setattr(build, "finish", lambda *_: sys.exit(9))
        assert run_cli(main, *arguments(old_cohort, out))[0] == 9
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert run_cli(verify, out)[0] == 0


def names_of_indices(root):
    return sorted(path.name for path in root.glob("*.index"))


def listed_indices(root):
    return sorted(index.name for split in SPLITS if (index := read_manifest(root).index(split)))


def test_the_index_of_an_extended_set_covers_all_shards_and_replaces_the_old_one(run_cli, cohort, out):
    before = {split: ShardSplit(out, split) for split in SPLITS}
    old = names_of_indices(out)
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert names_of_indices(out) == listed_indices(out)
    assert [name in old for name in names_of_indices(out)] == [True, False, False]
    for split in SPLITS:
        after, samples = ShardSplit(out, split), range(before[split].num_samples)
        # A reader that has opened the old index still has it.
        assert [after.key(n) for n in samples] == [before[split].key(n) for n in samples]
        assert after.stretches(samples) == before[split].stretches(samples)
        checked_of(after)


def checked_of(split):
    """Compare the checksums of a split with its tars."""
    tars = [(split.source.root / f"{entry.name}.tar").read_bytes() for entry in split.entries]
    for stretch in split.stretches(range(split.num_samples)):
        assert zlib.crc32(tars[stretch.shard][stretch.start : stretch.end]) == stretch.crc32


def test_an_extension_of_an_earlier_set_computes_the_missing_checksums(run_cli, cohort, out, tmp_path):
    earlier = as_by_an_earlier_version(shutil.copytree(out, tmp_path / "earlier"))
    for root in (out, earlier):
        assert run_cli(main, *arguments(cohort, root))[0] == 0
    assert contents(out) == contents(earlier)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (os.unlink, "is not on this machine"),
        (lambda tar: os.truncate(tar, 9000), "does not match the manifest"),
    ],
)
def test_an_extension_without_the_earlier_shards_has_no_index_and_says_so(run_cli, cohort, out, damage, said):
    as_by_an_earlier_version(out)
    damage(out / "train/000001.tar")
    code, _, err = run_cli(main, *arguments(cohort, out))
    assert code == 0
    assert f"wrote the first shards of train without checksums, and one of them {said}" in " ".join(err.split())
    manifest = read_manifest(out)
    assert [manifest.index(split) is None for split in SPLITS] == [True, False, False]
    assert ShardSplit(out, "train").num_samples == 220


def test_a_damaged_index_is_refused_before_the_set_is_extended(run_cli, cohort, out):
    next(out.glob("train-*.index")).write_bytes(b"")
    before = contents(out)
    code, _, err = run_cli(main, *arguments(cohort, out))
    assert (code, "found 0. Copy or build the set again." in err) == (2, True)
    assert contents(out) == before


def test_an_extension_killed_between_its_indices_and_its_manifest_leaves_the_old_set(run_cli, cohort, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(manifest_writer, "write_json", lambda *_: sys.exit(9))
        assert run_cli(main, *arguments(cohort, out))[0] == 9
    assert len(names_of_indices(out)) > 3
    assert ShardSplit(out, "train").num_samples == 180
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert names_of_indices(out) == listed_indices(out)


def test_other_files_in_the_folder_stay(run_cli, cohort, out):
    (out / "originals").mkdir()
    kept = [out / "originals/000001.tar", out / "train/mine.tar", out / "mine.index"]
    for path in kept:
        path.write_text("mine")
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert all(path.read_text() == "mine" for path in kept)


def test_a_truncated_record_is_ignored(run_cli, cohort, out):
    (out / ".build").mkdir()
    for name in ("train-000006.json", ".tmp-17-train-000000.json", ".tmp-9-config.json"):
        (out / ".build" / name).write_text('{"digest": "')
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert run_cli(verify, out)[0] == 0


def test_a_new_subject_that_copies_an_old_one_is_refused(run_cli, cohort, out):
    shutil.copy(next((cohort / "IXI-T1").iterdir()), cohort / "B/b0-x.nii.gz")
    before = state(out)
    assert run_cli(main, *arguments(cohort, out, "both.yaml"))[0] == 2
    (problem,) = json.loads(out.with_name("shards.problems.json").read_text())["problems"]
    assert (problem["cohort"], problem["check"]) == ("site_b", "same")
    assert "the same content as the high field of another subject" in problem["message"]
    assert state(out) == before


@pytest.mark.parametrize("source", ["IXI-T1/IXI002-Guys-0700-T1.nii.gz", "real"])
@pytest.mark.parametrize("flags", [(), ("--pseudonymize",)])
def test_a_copy_of_a_scan_in_the_set_is_found_without_the_old_cohort(
    run_cli, cohort, old_cohort, tmp_path, source, flags
):
    out = tmp_path / "set"
    assert run_cli(main, *arguments(old_cohort, out), *flags)[0] == 0
    before = state(out)
    if source == "real":
        text = (cohort / "cohorts.yaml").read_text()
        text = text.replace("B/{subject}-x.nii.gz", "real/high/{subject}_slice_{slice}.nii.gz")
        (cohort / "cohorts.yaml").write_text(text)
    else:
        shutil.copy(cohort / source, cohort / "B/b0-x.nii.gz")
    code, _, err = run_cli(main, *arguments(cohort, out), *flags)
    assert code == 2
    assert "the set already holds a scan with the same content" in " ".join(err.split())
    problems = json.loads(out.with_name("set.problems.json").read_text())["problems"]
    assert {(problem["cohort"], problem["check"]) for problem in problems} == {("site_b", "same")}
    assert len(problems) == (5 if source == "real" else 1)
    assert all(problem["file"].endswith(", in the set") for problem in problems)
    assert state(out) == before


def test_fingerprints_of_a_pseudonymised_set_identify_no_scan_without_the_key(
    run_cli, old_cohort, tiny_shards, tmp_path
):
    assert run_cli(main, *arguments(old_cohort, tmp_path / "set"), "--pseudonymize")[0] == 0
    plain, sealed = ({tree["high"] for tree in read_manifest(root).sources} for root in (tiny_shards, tmp_path / "set"))
    assert len(plain) == len(sealed) == 8
    assert not plain & sealed


@pytest.mark.parametrize("file", ["cohorts.yaml", "both.yaml"])
def test_files_that_changed_since_the_set_was_built_are_reported(run_cli, cohort, out, old_cohort, file):
    path = sorted(cohort.glob("real/low/sub-01_*"))[3]
    image = nib.Nifti1Image.from_filename(path)
    before = state(out)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), path)
    (cohort / "old.yaml").write_text((old_cohort / "cohorts.yaml").read_text())
    code, _, err = run_cli(main, *arguments(cohort, out, "old.yaml" if file == "cohorts.yaml" else file))
    assert code == 2
    assert "the files of 1 subject have changed since the set was built" in err
    assert "(real sub-01)" in err
    assert state(out) == before


def test_new_subjects_in_an_old_cohort_are_refused(run_cli, cohort, out):
    os.rename(cohort / "B/b1-x.nii.gz", cohort / "IXI-T1/IXI009-Guys-0709-T1.nii.gz")
    code, _, err = run_cli(main, *arguments(cohort, out, "both.yaml"))
    assert code == 2
    assert "found 1 more" in err
    assert "Add them as a separate cohort" in err
