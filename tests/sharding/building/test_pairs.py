from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from upfield.common.command import parse
from upfield.common.errors import VolumeError
from upfield.sharding.building.pairs.subject_pairs import make_pairs
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import find_subjects
from upfield.sharding.configuration import SyntheticConfig
from upfield.sharding.shard import COMMAND


@pytest.fixture(scope="module")
def config(tiny_cohort):
    return parse(COMMAND, ["--config", str(tiny_cohort / "cohorts.yaml"), "--out", "x"])


@pytest.fixture(scope="module")
def pairs(config, tiny_cohort):
    """The pairs of a training subject with a real low field and of one without."""
    subjects = [
        next(s for s in find_subjects(cohort, tiny_cohort).subjects if s.split == "train") for cohort in config.cohorts
    ]
    return [make_pairs(subject, config).pairs for subject in preflight(subjects).subjects]


def test_pairs_lie_on_the_high_field_grid_in_0_to_1(pairs):
    for pair in (pair for subject in pairs for pair in subject):
        for voxels in (pair.low, pair.high):
            assert (voxels.shape, voxels.dtype) == ((20, 24, 28), np.float16)
            assert (voxels.min(), voxels.max()) == (0, 1)


def test_a_subject_has_its_real_pair_and_its_synthetic_ones(pairs):
    assert [[pair.unit.kind for pair in subject] for subject in pairs] == [["real", "synthetic"], ["synthetic"]]


def test_synthetic_pairs_record_their_parameters(pairs):
    real, synthetic = pairs[0]
    assert real.parameters == {}
    assert sorted(synthetic.parameters) == ["gamma", "noise_std", "sigma_vox"]


def test_the_physics_recipe_and_the_report_s_alternate_on_scans(config, tiny_cohort):
    cohort = replace(config.cohorts[1], synthetic=2, contrast="FLAIR")
    (subject, *_) = preflight(find_subjects(cohort, tiny_cohort).subjects).subjects
    both = replace(config, synthetic=SyntheticConfig(recipe="both"))
    simulated, degraded = make_pairs(replace(subject, contrast="FLAIR"), both).pairs
    assert (simulated.parameters["recipe"], simulated.parameters["sequence"]["contrast"]) == ("physics", "FLAIR")
    assert sorted(degraded.parameters) == ["gamma", "noise_std", "sigma_vox"]
    assert (simulated.low.shape, simulated.low.min(), simulated.low.max()) == ((20, 24, 28), 0, 1)
    assert not np.array_equal(simulated.low, degraded.low)


def test_low_field_resembles_its_partner_but_is_not_it(pairs):
    for pair in (pair for subject in pairs for pair in subject):
        correlation = np.corrcoef(pair.low.ravel().astype(float), pair.high.ravel().astype(float))[0, 1]
        assert 0.6 < correlation < 0.99


def test_the_high_field_of_all_a_subjects_pairs_is_the_same(pairs):
    np.testing.assert_array_equal(pairs[0][0].high, pairs[0][1].high)


def test_a_nearly_constant_volume_is_refused_with_its_path(tmp_path, config, tiny_cohort):
    voxels = np.zeros((20, 24, 28), np.int16)
    voxels[3, 3, 3] = 1
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "IXI001-A-1-T1.nii.gz")
    cohort = config.cohorts[1]
    constant = type(cohort)("ixi", f"{tmp_path}/{{subject}}-A-1-T1.nii.gz", fit="resize")
    (subject,) = preflight(find_subjects(constant, tiny_cohort).subjects).subjects
    with pytest.raises(VolumeError, match=rf"^{tmp_path}/IXI001-A-1-T1.nii.gz: percentiles 1 and 99 are both"):
        make_pairs(subject, config)
