import csv
import json
import os
import re
import shutil
import stat

import nibabel as nib
import numpy as np
import pytest

from upfield.common.command import to_tree
from upfield.common.errors import InputError
from upfield.sharding.cohorts import privacy
from upfield.sharding.cohorts.privacy import Pseudonyms, open_key, public_cohort, write_names
from upfield.sharding.configuration import CohortConfig
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.verify import main as verify

ONE, OTHER = Pseudonyms(b"k" * 32), Pseudonyms(b"K" * 32)
PSEUDONYM = re.compile(r"p[0-9a-f]{16}")
PAIRED = ("Quintessa-Vexler", "Ottokar-Brandl", "Philomena-Zwick", "Leopold-Hrdlicka")
ALONE = ("Annegret-Xaver", "Wendelin-Yilmaz", "Gudrun-Jaksch")
WARDS = ("lindenhof", "marienstift")
FOLDERS = ("st-elsewhere-clinic", "neuro-low", "neuro-high", "whole-heads")
# Words that must not be published. Parts of names are included, in case a key or a record holds one. No word is so
# short that voxels could contain it by chance.
PRIVATE = (*PAIRED, *ALONE, *(part for name in (*PAIRED, *ALONE) for part in name.split("-")), *WARDS, *FOLDERS)
COHORTS = """\
geometry: {low_shape: [12, 14, 6], low_spacing_mm: [1.6, 1.6, 5], high_shape: [20, 24, 28], high_spacing_mm: [1, 1, 1]}
cohorts:
  - name: pairs
    low: ROOTneuro-low/{subject}_{ward}_{slice}.nii.gz
    high: ROOTneuro-high/{subject}_{ward}_{slice}.nii.gz
    split: {val: [Ottokar-Brandl], test: 1}
  - name: heads
    high: ROOTwhole-heads/{ward}/{subject}.nii.gz
"""


@pytest.fixture(scope="session")
def hospital(tiny_cohort, tmp_path_factory):
    """The tiny cohort with names, wards and folders that identify people and places; treat it as read-only."""
    folder = tmp_path_factory.mktemp("privacy") / "st-elsewhere-clinic"
    for field in ("low", "high"):
        (folder / f"neuro-{field}").mkdir(parents=True)
        for number, name in enumerate(PAIRED):
            for path in sorted((tiny_cohort / f"real/{field}").glob(f"sub-{number:02d}_*")):
                index = path.name.rpartition("_")[2]
                shutil.copy(path, folder / f"neuro-{field}/{name}_{WARDS[number % 2]}_{index}")
    for name, path in zip(ALONE, sorted((tiny_cohort / "IXI-T1").iterdir()), strict=True):
        target = folder / f"whole-heads/{WARDS[0]}/{name}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "cohorts.yaml").write_text(COHORTS.replace("ROOT", ""))
    return folder


def arguments(hospital, out, *more):
    return [str(a) for a in ("--config", hospital / "cohorts.yaml", "--out", out, "--jobs", 1, *more)]


@pytest.fixture(scope="session")
def published(hospital, tmp_path_factory):
    """The hospital's pseudonymised set, in a separate folder with the key beside it; treat it as read-only."""
    out = tmp_path_factory.mktemp("published") / "shards"
    assert main(arguments(hospital, out, "--pseudonymize")) == 0
    return out


@pytest.fixture
def sick(hospital, tmp_path):
    """A copy of the hospital in which several subjects each have a different fault."""
    folder = shutil.copytree(hospital, tmp_path / "st-elsewhere-clinic")
    for path in (folder / "neuro-high").glob("Philomena-Zwick_*"):
        path.unlink()
    next((folder / "neuro-low").glob("Leopold-Hrdlicka_*_002.nii.gz")).unlink()
    heads = folder / f"whole-heads/{WARDS[0]}"
    shutil.copy(heads / f"{ALONE[0]}.nii.gz", heads / "Nebukadnezar-Ullrich.nii.gz")
    (heads / f"{ALONE[1]}.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\n")
    voxels = np.arange(20 * 24 * 28, dtype=np.float32).reshape(20, 24, 28)
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(heads / "Theodora-Falkenrath.nii.gz")
    voxels[3, 4, 5] = np.nan
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(heads / "Kunigunde-Ebert.nii.gz")
    whole = (heads / f"{ALONE[2]}.nii.gz").read_bytes()
    (heads / f"{ALONE[2]}.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder


SICK = (*PRIVATE, "Nebukadnezar", "Ullrich", "Theodora", "Falkenrath", "Kunigunde", "Ebert")
SKIP = ("--on_error", "skip", "--max_skipped", 9)


def everything(root):
    """All bytes of a set, file names included, in lower case."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    assert paths
    return b"\n".join(str(path.relative_to(root)).encode() + b"\n" + path.read_bytes() for path in paths).lower()


def found_in(root, words):
    held = everything(root)
    return [word for word in words if word.lower().encode() in held]


def subjects(root):
    manifest = read_manifest(root)
    return {subject["subject"] for split in ("train", "val", "test") for subject in manifest.subjects(split)}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(out):
    """The rows of the file that lists the name behind each pseudonym."""
    with out.with_name(f"{out.name}.key.names.csv").open() as file:
        return [tuple(row) for row in csv.reader(file)]


def test_pseudonyms_depend_only_on_key_cohort_and_name():
    made = [who.of(cohort, name) for who in (ONE, OTHER) for cohort in ("a", "b") for name in ("x", "y", "")]
    assert len(set(made)) == len(made)
    assert all(PSEUDONYM.fullmatch(pseudonym) for pseudonym in made)
    assert Pseudonyms(b"k" * 32).of("a", "x") == ONE.of("a", "x")


def test_sealed_texts_are_equal_only_for_equal_text_and_key():
    assert ONE.seal("data/{subject}.nii") == ONE.seal("data/{subject}.nii") != ONE.seal("data/{subject}.mgz")
    assert ONE.seal("data/{subject}.nii") != OTHER.seal("data/{subject}.nii")
    assert "subject" not in ONE.seal("data/{subject}.nii")


def test_a_private_key_is_made_once_and_then_read(tmp_path):
    path = tmp_path / "below/a.key"
    old = os.umask(0)
    try:
        made = open_key(path)
    finally:
        os.umask(old)
    assert mode(path) == 0o600
    assert len(made.key) >= 32
    assert open_key(path) == made
    assert open_key(tmp_path / "other.key") != made
    assert sorted(p.name for p in tmp_path.rglob("*.key")) == ["a.key", "other.key"]


def test_a_users_own_key_is_read_without_its_newline(tmp_path):
    (tmp_path / "a.key").write_text("correct horse battery\n")
    assert open_key(tmp_path / "a.key").key == b"correct horse battery"


def test_two_builds_that_make_a_key_at_once_share_one(tmp_path, monkeypatch):
    path = tmp_path / "set.key"
    write = privacy._write_private

    def other_first(made, text):
        if not path.exists():
            path.write_text("the key that another build has just made")
        write(made, text)

    monkeypatch.setattr(privacy, "_write_private", other_first)
    assert open_key(path).key == b"the key that another build has just made"
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.key"]


@pytest.mark.parametrize("content", [b"", b"\n", b"too short\n"])
def test_a_key_that_is_too_short_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "a.key").write_bytes(content)
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/a.key: expected a key of at least 16 bytes, found {len(content.strip())}"
    ):
        open_key(tmp_path / "a.key")
    assert (tmp_path / "a.key").read_bytes() == content


def test_the_names_file_is_sorted_keeps_old_rows_and_is_private(tmp_path):
    path = tmp_path / "names.csv"
    rows = [("b", "Vexler, Quintessa", "p1"), ("a", 'so "called"', "p2"), ("a", "Žofie", "p3")]
    write_names(path, rows[:1])
    path.chmod(0o644)
    write_names(path, [rows[2], rows[1], rows[0]])
    with path.open(encoding="utf-8", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("cohort", "subject", "pseudonym"), *sorted(rows)]
    assert mode(path) == 0o600
    before = path.read_bytes()
    write_names(path, [])
    assert path.read_bytes() == before


def test_a_cohort_states_its_patterns_without_the_folders_that_lead_to_them():
    cohort = CohortConfig("a", "/mnt/ward7/{subject}/high_{slice}.nii", low="low/{subject}_{slice}.nii")
    public = public_cohort(to_tree(cohort), None)
    assert public["high"] == ".../{subject}/high_{slice}.nii"
    assert public == to_tree(cohort) | {"high": public["high"]}
    wild = CohortConfig("a", "/mnt/ward7/scan-*/anat/{subject}.nii")
    assert public_cohort(to_tree(wild), None)["high"] == ".../scan-*/anat/{subject}.nii"


def test_a_pseudonymous_cohort_keeps_counts_and_replaces_lists_and_patterns():
    cohort = CohortConfig("a", "high/{subject}.nii", low="low/{subject}.nii", split={"val": ["x", "y"], "test": 2})
    public = public_cohort(to_tree(cohort), ONE)
    assert public["split"] == {"val": sorted([ONE.of("a", "x"), ONE.of("a", "y")]), "test": 2}
    assert public == to_tree(cohort) | {
        "split": public["split"],
        "high": ONE.seal("high/{subject}.nii"),
        "low": ONE.seal("low/{subject}.nii"),
    }


def test_a_pseudonymous_set_holds_no_name_field_folder_or_pattern_anywhere(published, hospital):
    assert found_in(published, (*PRIVATE, str(hospital), "{subject}", "{ward}", ".nii.gz", "metadata")) == []
    key = published.with_name("shards.key").read_bytes().strip()
    assert key not in everything(published)
    assert len(subjects(published)) == len(PAIRED) + len(ALONE)
    assert all(PSEUDONYM.fullmatch(subject) for subject in subjects(published))


def test_the_same_search_finds_names_in_a_set_without_pseudonyms(hospital, tmp_path):
    assert main(arguments(hospital, tmp_path / "shards")) == 0
    assert set(found_in(tmp_path / "shards", PRIVATE)) >= {*PAIRED, *ALONE, *WARDS}


def test_key_and_names_file_are_beside_the_set_and_private(published):
    beside = sorted(path.name for path in published.parent.iterdir())
    assert beside == ["shards", "shards.key", "shards.key.names.csv"]
    assert {mode(published.with_name(name)) for name in beside[1:]} == {0o600}
    head, *rows = names(published)
    assert head == ("cohort", "subject", "pseudonym")
    assert {(cohort, name) for cohort, name, _ in rows} == {("pairs", n) for n in PAIRED} | {
        ("heads", n) for n in ALONE
    }
    assert {pseudonym for _, _, pseudonym in rows} == subjects(published)


def test_a_pseudonymous_set_verifies_and_keeps_a_named_subjects_split(run_cli, published):
    assert run_cli(verify, published)[0] == 0
    whose = {pseudonym: name for _, name, pseudonym in names(published)[1:]}
    held_out = {whose[ShardSplit(published, "val").record(0)["subject"]]}
    assert held_out == {"Ottokar-Brandl"}


def test_the_same_key_gives_the_same_set_and_another_key_another_one(run_cli, published, hospital, tmp_path):
    key = published.with_name("shards.key")
    flags = ("--pseudonymize", "--pseudonym_key", key)
    assert run_cli(main, *arguments(hospital, tmp_path / "same", *flags))[0] == 0
    assert everything(tmp_path / "same") == everything(published)
    assert not (tmp_path / "same.key").exists()
    assert run_cli(main, *arguments(hospital, tmp_path / "other", "--pseudonymize"))[0] == 0
    assert not subjects(tmp_path / "other") & subjects(published)


def test_a_published_set_is_complete_with_its_key_and_refused_with_another(run_cli, published, hospital, tmp_path):
    before = everything(published)
    (tmp_path / "another.key").write_text("another one, of length enough")
    code, _, err = run_cli(main, *arguments(hospital, published, "--pseudonymize"))
    assert (code, "already complete" in err) == (0, True)
    for flags in (("--pseudonymize", "--pseudonym_key", tmp_path / "another.key"), ()):
        code, _, err = run_cli(main, *arguments(hospital, published, *flags))
        assert code == 2
        assert "another pseudonym key or with none. Use the --pseudonym_key that it was built with" in err
    assert everything(published) == before


def test_an_extension_takes_the_same_key_and_refuses_another(run_cli, hospital, tmp_path):
    text = (hospital / "cohorts.yaml").read_text()
    first, last = tmp_path / "first.yaml", tmp_path / "both.yaml"
    last.write_text(text)
    first.write_text(text[: text.index("  - name: heads")])
    out, flags = tmp_path / "shards", ("--root", hospital, "--jobs", 1, "--pseudonymize")
    assert run_cli(main, "--config", first, "--out", out, *flags)[0] == 0
    before = everything(out)
    (tmp_path / "another.key").write_text("another one, of length enough")
    code, _, err = run_cli(main, "--config", last, "--out", out, *flags, "--pseudonym_key", tmp_path / "another.key")
    assert code == 2
    assert "another pseudonym key or with none. Use the --pseudonym_key that it was built with" in err
    assert everything(out) == before
    assert run_cli(main, "--config", last, "--out", out, *flags)[0] == 0
    assert found_in(out, PRIVATE) == []
    assert subjects(out) == {pseudonym for _, _, pseudonym in names(out)[1:]}
    assert run_cli(verify, out)[0] == 0


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("flags", [(), ("--pseudonym_key", "mislaid.key")])
def test_a_lost_key_is_not_replaced_by_a_new_one(run_cli, published, hospital, tmp_path, monkeypatch, flags, finished):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(published, tmp_path / "shards")
    if not finished:
        (tmp_path / "shards/manifest.json").unlink()
        (tmp_path / "shards/.build").mkdir()
        (tmp_path / "shards/.build/config.json").write_text("{}")
    before = everything(tmp_path)
    code, _, err = run_cli(main, *arguments(hospital, tmp_path / "shards", "--pseudonymize", *flags))
    assert code == 2
    assert ".key: the key that" in err
    assert "was built with is missing" in err
    assert everything(tmp_path) == before


def test_a_remote_set_needs_a_named_key_file(run_cli, hospital):
    code, _, err = run_cli(main, *arguments(hospital, "s3://bucket/set", "--pseudonymize"))
    assert code == 2
    assert "--pseudonym_key is missing, and the default would put the key beside" in err


def test_no_path_of_the_cohorts_folder_is_in_a_set_without_pseudonyms_either(run_cli, hospital, tmp_path):
    (tmp_path / "cohorts.yaml").write_text(COHORTS.replace("ROOT", f"{hospital}/"))
    assert run_cli(main, *arguments(tmp_path, tmp_path / "absolute"))[0] == 0
    assert run_cli(main, *arguments(hospital, tmp_path / "relative"))[0] == 0
    for name in ("absolute", "relative"):
        assert found_in(tmp_path / name, (str(hospital), str(hospital.parent), str(tmp_path), hospital.name)) == []
    assert ".../{subject}_{ward}_{slice}.nii.gz" in (tmp_path / "absolute/manifest.json").read_text()


def test_reasons_for_skipped_subjects_reveal_no_path(run_cli, sick, tmp_path):
    (tmp_path / "cohorts.yaml").write_text(COHORTS.replace("ROOT", f"{sick}/"))
    assert run_cli(main, *arguments(tmp_path, tmp_path / "shards", *SKIP))[0] == 0
    skipped = read_manifest(tmp_path / "shards").skipped
    reported = [problem for one in skipped for problem in one["problems"]]
    assert {problem["check"] for problem in reported} == {"unpaired", "slices", "same", "header", "voxels"}
    assert found_in(tmp_path / "shards", (str(sick), str(tmp_path), sick.name)) == []
    # The list names the subject, but the reason does not.
    reasons = " ".join(problem["reason"] for problem in reported).lower()
    assert [word for word in (*SICK, ".nii", "/") if word.lower() in reasons] == []
    assert "(git lfs)" in reasons


def test_reasons_for_skipped_subjects_reveal_no_name_behind_pseudonyms(run_cli, sick, tmp_path):
    code, out, _ = run_cli(main, *arguments(sick, tmp_path / "shards", *SKIP, "--pseudonymize"))
    assert code == 0
    assert found_in(tmp_path / "shards", (*SICK, str(tmp_path))) == []
    skipped = read_manifest(tmp_path / "shards").skipped
    assert all(PSEUDONYM.fullmatch(one["subject"]) for one in skipped)
    # Reasons may quote headers, so they are not published either.
    assert all(problem.keys() == {"field", "check"} for one in skipped for problem in one["problems"])
    assert [word for word in SICK if word in out] == []
    # The file beside the set, for the owner of the files, names the subjects.
    problems = json.loads((tmp_path / "shards.problems.json").read_text())["problems"]
    assert {problem["subject"] for problem in problems} >= {"Kunigunde-Ebert", "Philomena-Zwick"}


def test_every_subject_that_a_set_mentions_is_in_the_names_file(run_cli, sick, tmp_path):
    assert run_cli(main, *arguments(sick, tmp_path / "shards", *SKIP, "--pseudonymize"))[0] == 0
    mentioned = subjects(tmp_path / "shards") | {one["subject"] for one in read_manifest(tmp_path / "shards").skipped}
    assert mentioned == {pseudonym for _, _, pseudonym in names(tmp_path / "shards")[1:]}
