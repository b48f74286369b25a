import nibabel as nib
import numpy as np
import pytest

from upfield.sharding.cohorts.contrasts import find_contrasts
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import find_cohorts
from upfield.sharding.configuration import CohortConfig


def find(folder, contrast=None, **files):
    """Write small scans with the names in `files`, and find the contrast of the cohort."""
    for field, names in files.items():
        (folder / field).mkdir()
        for name, descrip in names.items() if isinstance(names, dict) else dict.fromkeys(names, "").items():
            image = nib.Nifti1Image(np.random.default_rng(len(name)).random((6, 7, 8)), np.eye(4))
            image.header["descrip"] = descrip
            nib.save(image, folder / field / name)
    low = "low/{subject}_{shown}.nii.gz" if "low" in files else None
    cohort = CohortConfig("c", "high/{subject}_{what}.nii.gz", low, contrast=contrast)
    found = find_contrasts([cohort], preflight(find_cohorts([cohort], folder).subjects).subjects)
    return found.contrasts["c"], found.problems


def test_a_cohort_shows_what_all_its_files_say(tmp_path):
    assert find(tmp_path, high=["a_T1w.nii.gz", "b_T1.nii.gz"]) == ("T1w", [])


def test_files_that_say_nothing_leave_the_contrast_unknown(tmp_path):
    assert find(tmp_path, high=["a_T1w.nii.gz", "b_scan.nii.gz"]) == (None, [])


def test_the_path_pattern_counts_if_names_say_nothing(tmp_path):
    (tmp_path / "IXI-T1").mkdir()
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((6, 7, 8)), np.eye(4)), tmp_path / "IXI-T1/a.nii")
    cohort = CohortConfig("c", "IXI-T1/{subject}.nii")
    found = find_contrasts([cohort], preflight(find_cohorts([cohort], tmp_path).subjects).subjects)
    assert found.contrasts == {"c": "T1w"}


def test_a_stated_contrast_that_a_name_contradicts_is_a_problem(tmp_path):
    contrast, (problem,) = find(tmp_path, contrast="T1", high=["a_T1w.nii.gz", "b_FLAIR.nii.gz"])
    assert (contrast, problem.check, problem.subject, problem.is_doubt) == ("T1w", "contrast", "b", False)
    assert "its name says FLAIR, but the cohort states contrast: T1w." in problem.message


@pytest.mark.parametrize(("contrast", "expected"), [("T1w", 1), ("T2w", 0)])
def test_a_description_is_only_a_hint(tmp_path, contrast, expected):
    _, problems = find(tmp_path, contrast=contrast, high={"a_scan.nii.gz": "TE=1.6e+02;Time=115826.000"})
    assert [problem.is_doubt for problem in problems] == [True] * expected


def test_pairs_and_cohorts_of_several_contrasts_are_doubted(tmp_path):
    names = {
        "low": ["a_T2w.nii.gz", "b_T1w.nii.gz", "c_T1w.nii.gz"],
        "high": ["a_T1w.nii.gz", "b_T1w.nii.gz", "c_T1w.nii.gz"],
    }
    contrast, (doubt,) = find(tmp_path, **names)
    assert (contrast, doubt.subject, doubt.field, doubt.is_doubt) == (None, "a", "low", True)
    assert "its name says T2w, but the high field shows T1w." in doubt.message
