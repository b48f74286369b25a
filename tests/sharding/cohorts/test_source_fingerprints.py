import errno

import nibabel as nib
import numpy as np
import pytest

from upfield.common.errors import RunError, VolumeError
from upfield.sharding.cohorts import source_fingerprints as sources
from upfield.sharding.cohorts.privacy import Pseudonyms
from upfield.sharding.cohorts.source_fingerprints import (
    describe_all,
    describe_sources,
    find_changed_subjects,
    find_held_scans,
    seal_fingerprints,
)
from upfield.sharding.cohorts.subjects import Source, Subject
from upfield.sharding.shardset.manifest import Manifest


def holding(*trees):
    """A manifest of a set that holds only sources."""
    return Manifest({"sources": list(trees)})


def subject(path, name="s", cohort="a"):
    return Subject(cohort, name, name, "train", Source((path,), False), None, "resize", ())


def save(path, value=0, shape=(4, 5, 6)):
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) + np.int16(value)
    kind = nib.Nifti1Pair if ".hdr" in path.name else nib.Nifti1Image
    kind(voxels, np.eye(4)).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.hdr.gz"])
def test_a_change_of_one_voxel_changes_the_fingerprint_and_a_copy_does_not(tmp_path, name):
    (tmp_path / "copy").mkdir()
    first, same = save(tmp_path / name), save(tmp_path / "copy" / name)
    before = describe_sources(subject(first))
    assert describe_sources(subject(same)) == before
    voxels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    voxels[2, 2, 2] += 1
    kind = nib.Nifti1Pair if ".hdr" in name else nib.Nifti1Image
    kind(voxels, np.eye(4)).to_filename(first)
    assert describe_sources(subject(first)) != before


def test_files_beside_a_volume_are_not_part_of_it(tmp_path):
    path = save(tmp_path / "a.hdr")
    before = describe_sources(subject(path))
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.feat").mkdir()
    assert describe_sources(subject(path)) == before


def test_large_uncompressed_files_are_distinguished_by_samples_spread_over_them(tmp_path):
    first, second = (save(tmp_path / f"{value}.nii", value, (80, 80, 80)) for value in (0, 1))
    assert describe_sources(subject(first)) != describe_sources(subject(second))


def test_machine_errors_are_not_blamed_on_the_subject_and_a_damaged_file_is_named_without_its_path(
    tmp_path, monkeypatch
):
    path = tmp_path / "Jane.nii.gz"
    path.write_bytes(b"short")
    with pytest.raises(VolumeError) as caught:
        describe_sources(subject(path))
    assert "Jane" not in caught.value.problem

    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(sources, "fingerprint", stale)
    with pytest.raises(RunError, match="the file cannot be read"):
        describe_sources(subject(path))


def test_several_processes_return_the_same_in_the_same_order(tmp_path, monkeypatch):
    subjects = [subject(save(tmp_path / f"{number}.nii", number), f"{number}") for number in range(5)]
    alone = describe_all(subjects, 1)
    monkeypatch.setattr("upfield.sharding.cohorts.subjects.FILES_FOR_PROCESSES", 1)
    assert describe_all(subjects, 2) == alone
    assert [tree["subject"] for tree in alone] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("pseudonyms", [None, Pseudonyms(b"a key of some length")])
def test_scans_of_the_set_are_found_under_another_name_and_changed_files_are_reported(tmp_path, pseudonyms):
    old = [subject(save(tmp_path / f"{number}.nii", number), f"{number}") for number in range(3)]
    held = holding(*(seal_fingerprints(tree, pseudonyms) for tree in describe_all(old, 1)))
    again, fresh = subject(old[1].main_source.paths[0], "x", "b"), subject(save(tmp_path / "9.nii", 9), "y", "b")
    (problem,) = find_held_scans([again, fresh], held, pseudonyms, 1)
    assert (problem.cohort, problem.subject, problem.check) == ("b", "x", "same")
    assert problem.file == f"{old[1].main_source.paths[0]} = a 1, in the set"
    assert "a 1" not in problem.message
    assert find_changed_subjects([*old, fresh], held, pseudonyms, 1) == []
    save(old[2].main_source.paths[0], 77)
    assert find_changed_subjects([*old, fresh], held, pseudonyms, 1) == [old[2]]
