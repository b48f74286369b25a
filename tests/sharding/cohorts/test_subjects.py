from dataclasses import replace
from itertools import product

import pytest

from upfield.common.errors import InputError
from upfield.sharding.cohorts.privacy import Pseudonyms
from upfield.sharding.cohorts.splits import assign_splits
from upfield.sharding.cohorts.subjects import find_subjects, match
from upfield.sharding.configuration import CohortConfig
from upfield.sharding.shardset.sample_key import Unit

MANY = [f"s{number:03d}" for number in range(200)]


@pytest.fixture
def files(tmp_path):
    """A function that makes empty files and returns their folder."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def names(source):
    return [path.name for path in source.paths]


def splits(split, subjects=MANY, name="a"):
    return assign_splits(CohortConfig(name, "{subject}", split=split), {subject: subject for subject in subjects})


def members(assigned, split):
    return {subject for subject, found in assigned.items() if found == split}


def test_free_fields_are_kept_as_metadata(files):
    root = files("T1/IXI002-Guys-0828-T1.nii.gz", "T1/IXI012-HH-1211-T1.nii.gz", "T1/IXI012-HH-1211-T2.nii.gz")
    found, _ = match("T1/{subject}-{site}-{scan}-T1.nii.gz", root, "a", "high")
    assert sorted(found) == ["IXI002", "IXI012"]
    assert found["IXI012"].metadata == {"site": "HH", "scan": "1211"}
    assert not found["IXI012"].stacked


def test_bids_trees_match_and_both_mentions_of_a_subject_must_agree(files):
    root = files("sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz", "sub-02/ses-b/anat/sub-03_ses-b_T1w.nii.gz")
    found, _ = match("sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_T1w.nii.gz", root, "a", "high")
    assert {subject: source.metadata for subject, source in found.items()} == {"01": {"session": "a"}}


def test_files_that_do_not_fully_match_the_pattern_are_reported(files, capsys):
    root = files("a_slice_1.nii", "a_slice_2.nii", "a_slice_x.nii")
    found, problems = match("{subject}_slice_{slice}.nii", root, "heads", "low")
    assert (names(found["a"]), problems) == (["a_slice_1.nii", "a_slice_2.nii"], [])
    said = capsys.readouterr().err
    assert said.startswith("cohort heads: low: ignored 1 file without a full match of {subject}_slice_{slice}.nii")
    assert said.rstrip().endswith("a_slice_x.nii")


def test_wildcards_match_within_and_across_folders(files):
    root = files("x/s1/deep/er/T1_3.nii", "x/s2/T1_4.nii", "x/s3/T12_4.nii")
    assert sorted(match("x/{subject}/**/T1_?.nii", root, "a", "high")[0]) == ["s1", "s2"]
    assert sorted(match("x/{subject}/T1*.nii", root, "a", "high")[0]) == ["s2", "s3"]


def test_links_to_folders_are_followed_but_not_in_circles(files, tmp_path):
    root = files("tree/a/s1.nii", "tree/.hidden/s2.nii", "tree/folder.nii/s3.txt", "elsewhere/s4.nii")
    (tree := root / "tree").joinpath("to_itself").symlink_to(tree)
    for name in ("b", "c", "d"):
        (tree / "a" / name).symlink_to(tree)
    (tree / "e").symlink_to(root / "elsewhere")
    (tree / "circle").symlink_to(tree / "circle")
    found, problems = match("tree/**/{subject}.nii", root, "a", "high")
    assert (sorted(found), problems) == (["s1", "s4"], [])


def test_brackets_and_dots_of_a_path_are_literal(files):
    root = files("a[1]/s1.nii", "a1/s2.nii", "a[1]/s3_nii")
    assert sorted(match("a[1]/{subject}.nii", root, "a", "high")[0]) == ["s1"]


def test_absolute_patterns_need_no_root(files, tmp_path_factory):
    root = files("s1.nii")
    assert sorted(match(f"{root}/{{subject}}.nii", tmp_path_factory.mktemp("other"), "a", "high")[0]) == ["s1"]


def test_slices_are_ordered_by_number_not_by_name(files):
    root = files(*(f"s1_slice_{number}.nii" for number in range(1, 12)))
    source = match("{subject}_slice_{slice}.nii", root, "a", "high")[0]["s1"]
    assert names(source) == [f"s1_slice_{number}.nii" for number in range(1, 12)]
    assert source.stacked


def test_no_match_is_reported_with_the_pattern(files):
    root = files("y/s1.nii", "y/s2.nii")
    with pytest.raises(
        InputError, match=r"^cohort a: high: no file matches .*/x/\{subject\}.nii\. .*/x does not exist"
    ):
        match("x/{subject}.nii", root, "a", "high")
    with pytest.raises(InputError, match=r"Correct the pattern: the folder .*/y holds s1.nii, s2.nii\."):
        match("y/{subject}.mgz", root, "a", "high")


def test_gaps_in_a_stack_are_reported_with_subject_and_numbers(files):
    root = files(*(f"s1_{number}.nii" for number in (0, 1, 4)), "s2_0.nii")
    _, (problem,) = match("{subject}_{slice}.nii", root, "a", "low")
    assert (problem.cohort, problem.subject, problem.field, problem.check) == ("a", "s1", "low", "slices")
    assert problem.message.startswith("2 of the slices 0 to 4 are missing (2, 3)")


@pytest.mark.parametrize(
    ("first", "second", "pattern"),
    [
        ("s1_2.nii", "s1_02.nii", "{subject}_{slice}.nii"),
        ("s1-a.nii", "s1-b.nii", "{subject}-{scan}.nii"),
    ],
)
def test_two_files_for_one_slice_are_both_named(files, first, second, pattern):
    _, (problem,) = match(pattern, files(first, second), "a", "high")
    assert "two files match the same subject" in problem.message
    assert first in problem.file
    assert second in problem.file


def test_unpaired_subjects_are_reported_with_the_field_they_lack(files):
    root = files("low/a.nii", "low/b.nii", "high/b.nii", "high/c.nii")
    found = find_subjects(CohortConfig("x", low="low/{subject}.nii", high="high/{subject}.nii"), root)
    assert [(p.subject, p.field, p.check) for p in found.problems] == [
        ("a", "high", "unpaired"),
        ("c", "low", "unpaired"),
    ]
    assert [subject.name for subject in found.subjects] == ["b"]


@pytest.mark.parametrize(
    ("low", "high", "problem"),
    [
        ("{subject}_ses-{session}_T1w", "{subject}_ses-{session}_T1w", r"differ in {session}: 01 and 02"),
        ("{subject}_ses-01_{contrast}", "{subject}_ses-02_{contrast}", None),
        ("{subject}_ses-{low_session}_T1w", "{subject}_ses-{high_session}_T1w", None),
        ("{subject}_ses-{session}_T1w", "{subject}_ses-*_T1w", None),
    ],
)
def test_the_two_files_of_a_pair_have_equal_fields_unless_the_patterns_name_them_differently(files, low, high, problem):
    root = files("low/s_ses-01_T1w.nii", "high/s_ses-02_T1w.nii")
    found = find_subjects(CohortConfig("x", low=f"low/{low}.nii", high=f"high/{high}.nii"), root)
    said = [(p.subject, p.check) for p in found.problems if problem and problem in p.message]
    assert said == ([("s", "fields")] if problem else [])
    assert len(found.problems) == len(said)


def test_the_values_of_both_fields_are_kept_as_metadata(files):
    root = files("low/s-a-1-T1.nii", "high/s-A-01-T1.nii")
    cohort = CohortConfig("x", low="low/{subject}-{site}-{low_run}-{c}.nii", high="high/{subject}-{site}-{run}-{c}.nii")
    (subject,) = find_subjects(cohort, root).subjects
    assert subject.main_source.metadata == {"site": {"low": "a", "high": "A"}, "low_run": "1", "run": "01", "c": "T1"}


def test_sessions_are_never_mixed(files):
    root = files(*(f"{field}/s_{session}.nii" for field in ("low", "high") for session in (1, 2)))
    pattern = "{subject}_{session}.nii"
    found = find_subjects(CohortConfig("x", low=f"low/{pattern}", high=f"high/{pattern}"), root)
    assert {(p.field, p.check) for p in found.problems} == {("low", "slices"), ("high", "slices")}


def test_slices_of_two_scans_in_one_stack_are_reported(files):
    root = files(*(f"s_{'b' if number == 2 else 'a'}_{number}.nii" for number in range(5)))
    _, (problem,) = match("{subject}_{run}_{slice}.nii", root, "x", "low")
    assert problem.message.startswith("1 of the 5 slices have another {run} than the rest: b instead of a")
    assert not match("{subject}_*_{slice}.nii", root, "x", "low")[1]


def test_a_field_that_counts_slices_is_no_problem(files):
    root = files(*(f"s_{number}_{100 - number}.nii" for number in range(5)))
    assert not match("{subject}_{slice}_{time}.nii", root, "x", "low")[1]


def test_subjects_with_problems_keep_their_place_in_the_splits(files):
    cohort = CohortConfig("x", low="low/{subject}.nii", high="high/{subject}.nii", split={"val": 2})
    names = [f"s{number}" for number in range(6)]
    whole = find_subjects(cohort, files(*(f"{field}/{name}.nii" for field in ("low", "high") for name in names)))
    held_out = [subject.id for subject in whole.subjects if subject.split == "val"]
    root = files(*(f"high/{name}.nii" for name in names), *(f"low/{name}.nii" for name in names))
    (root / f"low/{held_out[0]}.nii").unlink()
    left = find_subjects(cohort, root).subjects
    assert [subject.id for subject in left if subject.split == "val"] == held_out[1:]


def test_pseudonyms_replace_ids_and_free_fields_but_lists_name_subjects_by_their_files(files):
    root = files("T1/anna-Guys.nii", "T1/ben-HH.nii", "T1/carl-HH.nii")
    cohort = CohortConfig("x", "T1/{subject}-{site}.nii", split={"val": ["ben"]})
    found = find_subjects(cohort, root, Pseudonyms(b"a key of some length")).subjects
    assert {subject.name: subject.split for subject in found} == {"anna": "train", "ben": "val", "carl": "train"}
    assert all(subject.id.startswith("p") and len(subject.id) == 17 for subject in found)
    assert [subject.id for subject in found] == sorted(subject.id for subject in found)
    assert all(subject.main_source.metadata == {} for subject in found)


def test_subjects_are_paired_by_id_with_their_fit_by_kind_of_file(files):
    root = files("low/b_0.nii", "low/b_1.nii", "high/b_0.nii", "high/b_1.nii", "whole/c.nii")
    stacks = CohortConfig("x", low="low/{subject}_{slice}.nii", high="high/{subject}_{slice}.nii")
    (subject,) = find_subjects(stacks, root).subjects
    assert subject.low is not None
    assert (names(subject.low), names(subject.high)) == (["b_0.nii", "b_1.nii"],) * 2
    assert subject.fit == "resize"
    whole = CohortConfig("y", high="whole/{subject}.nii")
    assert [subject.fit for subject in find_subjects(whole, root).subjects] == ["crop_pad"]
    assert [subject.fit for subject in find_subjects(replace(whole, fit="resize"), root).subjects] == ["resize"]


def test_held_out_subjects_have_only_real_pairs_if_the_cohort_has_them(files):
    root = files(*(f"{field}/{subject}.nii" for field, subject in product(("low", "high"), "abc")))
    paired = CohortConfig("x", low="low/{subject}.nii", high="high/{subject}.nii", synthetic=2, split={"val": ["b"]})
    kinds = {s.id: [(unit.kind, unit.variant) for unit in s.units] for s in find_subjects(paired, root).subjects}
    assert kinds["b"] == [("real", 0)]
    assert kinds["a"] == [("real", 0), ("synthetic", 0), ("synthetic", 1)]
    alone = replace(paired, low=None)
    assert {len(s.units) for s in find_subjects(alone, root).subjects} == {2}


@pytest.mark.parametrize("split", [{}, {"val": 3, "test": 5}, {"val": 0.2, "test": 0.1}, {"val": ["s001"], "test": 2}])
def test_every_subject_is_in_one_split(split):
    assigned = splits(split)
    assert sorted(assigned) == MANY
    assert set(assigned.values()) <= {"train", "val", "test"}


def test_counts_are_exact():
    assigned = splits({"val": 3, "test": 5})
    assert (len(members(assigned, "val")), len(members(assigned, "test"))) == (3, 5)


def test_fractions_are_about_right_and_added_subjects_move_no_other():
    split = {"val": 0.2, "test": 0.1}
    assigned = splits(split)
    assert 25 <= len(members(assigned, "val")) <= 55
    assert 10 <= len(members(assigned, "test")) <= 32
    assert splits(split, MANY[:90]) == {subject: assigned[subject] for subject in MANY[:90]}


def test_fractions_with_a_sum_of_one_leave_no_training_subjects():
    assert not members(splits({"val": 0.5, "test": 0.5}), "train")


def test_lists_are_taken_before_counts():
    chosen = sorted(members(splits({"test": 1}), "test"))
    assigned = splits({"val": chosen, "test": 1})
    assert members(assigned, "val") == set(chosen)
    assert len(members(assigned, "test")) == 1


def test_splits_depend_on_names_not_on_order():
    assert splits({"val": 3, "test": 5}, MANY[::-1]) == splits({"val": 3, "test": 5})
    assert splits({"val": 3, "test": 5}, name="b") != splits({"val": 3, "test": 5})


def test_adding_a_cohort_changes_no_split(files):
    root = files(*(f"{cohort}/{subject}.nii" for cohort, subject in product("ab", MANY[:9])))
    first, second = (CohortConfig(name, f"{name}/{{subject}}.nii", split={"val": 2, "test": 2}) for name in "ab")
    before = {subject.id: subject.split for subject in find_subjects(first, root).subjects}
    both = [subject for cohort in (second, first) for subject in find_subjects(cohort, root).subjects]
    assert {subject.id: subject.split for subject in both if subject.cohort == "a"} == before


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"val": 201}, "split.val: expected a count from 0 to 200, a fraction below 1 or a list, found 201"),
        (
            {"val": 150, "test": 51},
            "expected a count from 0 to 149 (the other split has 51 of the 200 subjects), a fraction",
        ),
        ({"val": -1}, "found -1"),
        ({"val": -0.5}, "found -0.5"),
        ({"val": 1.5}, "found 1.5"),
        ({"val": float("nan")}, "found nan"),
        ({"val": float("inf")}, "found inf"),
        ({"val": 0.7, "test": 0.7}, "expected fractions with a sum of at most 1, found 1.4"),
        ({"val": ["s001", "s999"]}, "split.val: these subjects do not exist or are in both splits: s999."),
        ({"val": ["s001"], "test": ["s001"]}, "do not exist or are in both splits: s001"),
    ],
)
def test_impossible_splits_are_refused(split, message):
    with pytest.raises(InputError) as caught:
        splits(split)
    assert message in str(caught.value)


def test_ids_with_dots_and_spaces_get_keys_that_webdataset_and_index_can_hold(files):
    (subject,) = find_subjects(CohortConfig("x", "{subject}.nii"), files("s 1.ses-2.nii")).subjects
    assert subject.id == "s 1.ses-2"
    assert subject.units[0].key(9) == "x-s_1_ses-2-synthetic-0-x009"


@pytest.mark.parametrize("pair", [("a.b", "a_b"), ("a b", "a.b")])
def test_ids_whose_keys_would_be_equal_are_reported(files, pair):
    root = files(*(f"{subject}.nii" for subject in pair))
    (problem,) = find_subjects(CohortConfig("x", "{subject}.nii"), root).problems
    assert problem.message.startswith("two ids differ only in characters other than letters")


def test_ids_and_names_too_long_for_a_tar_header_are_refused(files):
    (problem,) = find_subjects(CohortConfig("x", "{subject}.nii"), files("a" * 41 + ".nii")).problems
    assert "the id has more than 40 characters" in problem.message
    with pytest.raises(ValueError, match="expected 1 to 30 letters"):
        CohortConfig("x" * 31, "{subject}.nii")
    assert len(Unit("x" * 30, "a" * 40, "synthetic", 99).key(100) + ".high.npy") <= 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a-b"}, "expected 1 to 30 letters, digits and underscores, found 'a-b'"),
        ({"name": "é"}, "letters"),
        ({"high": "x.nii"}, r"high: expected a pattern with {subject}, found 'x.nii'"),
        ({"low": "x.nii"}, r"low: expected a pattern with {subject}"),
        ({"synthetic": 0}, "synthetic: expected at least 1, found 0"),
        ({"synthetic": -1, "low": "{subject}"}, "synthetic: expected at least 0"),
        ({"split": {"valid": 1}}, r"expected only val and test, found \['valid'\]"),
    ],
)
def test_invalid_cohorts_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CohortConfig(**{"name": "a", "high": "{subject}.nii"} | fields)
