import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from built_sets import arguments, contents, records

from upfield.sharding.building import block_builder
from upfield.sharding.building import build as build_module
from upfield.sharding.cohorts import preflight
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.verify import main as verify


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


def test_a_set_with_skipped_subjects_does_not_depend_on_jobs_or_on_a_failed_first_build(
    run_cli, cohort, damaged, tmp_path
):
    skip = ("--on_error", "skip")
    assert run_cli(main, *arguments(cohort, tmp_path / "one"), *skip)[0] == 0
    assert run_cli(main, *arguments(cohort, tmp_path / "two"))[0] == 2
    assert run_cli(main, *arguments(cohort, tmp_path / "two"), *skip, "--jobs", 2)[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_block_without_usable_subjects_has_no_shards(run_cli, cohort, tmp_path):
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
    assert "have 2 problems, listed in" in err
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


def test_one_file_under_two_names_is_refused(run_cli, cohort, tmp_path):
    with (cohort / "cohorts.yaml").open("a") as file:
        file.write("  - {name: again, high: 'IXI-T1/{subject}-{site}-{scan}-T1.nii.gz', split: {val: [IXI002]}}\n")
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "out"))
    assert code == 2
    assert " subjects have 6 problems" in err
    assert not (tmp_path / "out").exists()


def test_a_stack_that_lost_its_end_is_reported(run_cli, cohort, tmp_path):
    (cohort / "real/low/sub-03_slice_005.nii.gz").unlink()
    _, _, err = run_cli(main, *arguments(cohort, tmp_path / "out"))
    assert (
        "low: sub-03: most stacks of this cohort cover 30 mm, but this one covers 25 mm. Check that it is complete."
        in err
    )


def test_pairs_that_lie_in_different_places_are_reported_and_built(run_cli, cohort, tmp_path):
    for path in cohort.glob("real/low/sub-01_*"):
        image = nib.Nifti1Image.from_filename(path)
        affine = np.array(image.affine)
        affine[1, 3] += 15
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    code, out, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 0
    assert "1 doubt of 1 subject\nThese subjects are still included" in err
    said = "some borders are 15 mm apart posterior-anterior"
    for _ in range(2):
        assert "in doubt: 1 subject." in out
        assert said in " ".join(out.split())
        # A second run has nothing to do, but reports the doubt again.
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
    image.header["descrip"] = b"written again"
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
    assert "1 scan is a copy of others" in err
    (problem,) = json.loads(out.with_name(f"{out.name}.problems.json").read_text())["problems"]
    return (problem["cohort"], problem["check"]) == ("more", "same") and problem["file"].endswith("= ixi IXI003")


@pytest.mark.parametrize("copy", [rewritten, turned])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_scan_in_two_different_files_is_refused(run_cli, cohort, copied, tmp_path, copy, on_error):
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
        (rewritten, "1 scan is a copy of others"),
        (turned, "1 scan is a copy of others"),
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


def test_equal_names_in_several_cohorts_and_splits_are_reported(run_cli, cohort, tmp_path):
    (cohort / "again").mkdir()
    for path in cohort.glob("IXI-T1/*"):
        image = nib.Nifti1Image.from_filename(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), cohort / "again" / path.name)
    text = (cohort / "cohorts.yaml").read_text()
    again = "  - {name: again, high: 'again/{subject}-{site}-{scan}-T1.nii.gz', split: {test: [IXI003]}}\n"
    (cohort / "cohorts.yaml").write_text(text + again)
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"))
    assert code == 0
    assert (
        "1 person may be in more than one split, because equal or similar ids are in different splits (IXI003)" in err
    )


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
    assert "like most of its stack, found (9, 9)" in said


def test_a_gap_is_reported_once_and_its_wider_step_is_not_taken_as_spacing(run_cli, cohort, tmp_path):
    for path in sorted(cohort.glob("real/low/sub-01_*"))[2:4]:
        path.unlink()
    assert run_cli(main, *arguments(cohort, tmp_path / "shards"))[0] == 2
    (problem,) = json.loads((tmp_path / "shards.problems.json").read_text())["problems"]
    assert (problem["subject"], problem["field"], problem["check"]) == ("sub-01", "low", "slices")
    assert "2 of the slices" in problem["message"]


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


@pytest.mark.parametrize("place", ["pairs", "header", "comparison"])
def test_a_fault_of_the_program_in_one_subject_loses_no_report_about_the_others(
    run_cli, cohort, damaged, tmp_path, monkeypatch, place
):
    module, name, argument = {
        "pairs": (block_builder, "make_pairs", 0),
        "header": (preflight, "check_volume", 0),
        "comparison": (preflight, "_mismatched_fields", 1),
    }[place]
    original = getattr(module, name)

    def failing(*args):
        if "sub-02" in repr(args[argument]):
            raise KeyError("a fault")
        return original(*args)

    monkeypatch.setattr(module, name, failing)
    if place == "pairs":
        other = "ixi"
    else:
        other = "real"
        (cohort / "real/low/sub-03_slice_002.nii.gz").unlink()
    code, _, err = run_cli(main, *arguments(cohort, tmp_path / "shards"), "--jobs", 1)
    assert code == 1
    assert "Please report it" in err
    assert "Traceback" not in err
    reported = json.loads((tmp_path / "shards.problems.json").read_text())["problems"]
    assert {"fault", "slices" if other == "real" else "voxels"} == {problem["check"] for problem in reported}
    for problem in reported:
        is_fault = problem["check"] == "fault"
        assert (problem["subject"] == "sub-02") == is_fault
        assert ("KeyError in test_faulty_input.py, line" in problem["message"]) == is_fault
        assert ("KeyError: 'a fault'" in problem.get("details", "")) == is_fault
    flags = ("--jobs", 1, "--on_error", "skip", "--max_skipped")
    num_bad = 2 if place == "pairs" else 3
    assert run_cli(main, *arguments(cohort, tmp_path / "shards"), *flags, num_bad - 1)[0] == 1
    assert run_cli(main, *arguments(cohort, tmp_path / "shards"), *flags, num_bad)[0] == 0
    skipped = {s["subject"]: s["problems"] for s in read_manifest(tmp_path / "shards").skipped}
    assert len(skipped) == num_bad
    assert {problem["check"] for problem in skipped["sub-02"]} == {"fault"}
    text = (tmp_path / "shards/manifest.json").read_text()
    assert "Traceback" not in text
    assert str(cohort) not in text
