"""Build sets on a coarse grid from real scans, which are in a folder beside the checkout."""

import json
from pathlib import Path

import numpy as np
import pytest

from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.verify import main as verify

DATA = Path(__file__).parents[3] / "shared/data"
AWKWARD_FILES = sorted((DATA / "awkward").glob("*.nii*"))
GEOMETRY = """\
geometry: {low_shape: [22, 28, 20], low_spacing_mm: [8, 8, 10], high_shape: [45, 55, 50], high_spacing_mm: [4, 4, 4]}
"""
# Part of the error message for each file that is refused; the other files can be built into a set.
REFUSED = {
    "4d_pcasl_52x68x20x10.nii.gz": "expected 3 dimensions, found 4",
    "all_zero_156cubed.nii.gz": "every voxel has the value 0",
    "complex64_10cubed_qform0_sform0.nii.gz": "expected real voxels, found type complex64",
    "ct_sheared_sform_qform_mismatch.nii.gz": "(sheared)",
    "empty_file.nii.gz": "the file is empty",
    "has_153_NaN_bigendian_17x21x3.nii": "153 are NaN or infinite",
    "rgb24_ct.nii.gz": "expected real voxels",
    "tiny_7x5x3.nii.gz": "percentiles 1 and 99 are both",  # The scan nearly vanishes on the grid.
    "text_pointer.nii.gz": "(Git LFS)",
    "truncated_gzip.nii.gz": "the file is cut off or damaged",
}

needs_scans = pytest.mark.skipif(not (DATA / "ixi").is_dir(), reason="no ../shared/data beside this checkout")


def arguments(folder, *more):
    return "--config", folder / "cohorts.yaml", "--out", folder / "shards", "--jobs", 1, *more


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """The set of all high-field scans."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "cohorts.yaml").write_text(
        f"{GEOMETRY}cohorts:\n"
        f"  - {{name: ixi, high: '{DATA}/ixi/{{subject}}-{{site}}-{{scan}}-T1.nii.gz', split: {{val: 1, test: 1}}}}\n"
        f"  - {{name: t1, high: '{DATA}/t1/{{subject}}_T1.nii.gz'}}\n"
    )
    assert main([str(argument) for argument in arguments(folder)]) == 0
    return folder / "shards"


def volumes(root, cohort):
    """Read the high field `(X, Y, Z)` of each subject of a cohort, by subject id."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for split in (ShardSplit(root, name) for name in SPLITS):
        low = np.empty((1, *split.low_shape), np.float16)
        for number in range(split.num_samples):
            record, high = split.record(number), np.empty((1, *split.high_shape), np.float16)
            split.read_into([number], low, high)
            if record["cohort"] == cohort:
                found.setdefault(record["subject"], {})[record["slice"]] = high[0, 0].astype(np.float32)
    return {subject: np.stack([slices[x] for x in sorted(slices)]) for subject, slices in found.items()}


@needs_scans
def test_all_high_field_scans_build_into_a_set_that_verifies(run_cli, heads):
    manifest = read_manifest(heads)
    assert {split: len(manifest.subjects(split)) for split in SPLITS} == {"train": 8, "val": 1, "test": 1}
    assert sum(entry.samples for split in SPLITS for entry in manifest.shards(split)) == 10 * 45
    assert (manifest.skipped, str(DATA) in (heads / "manifest.json").read_text()) == ([], False)
    assert run_cli(verify, heads)[0] == 0


@needs_scans
@pytest.mark.parametrize("cohort", ["ixi", "t1"])
def test_heads_fill_the_grid_and_stand_upright_for_every_storage_order(heads, cohort):
    found = volumes(heads, cohort)
    assert len(found) == {"ixi": 6, "t1": 4}[cohort]
    for subject, voxels in found.items():
        assert 0.15 < (voxels > 0.2).mean() < 0.75, subject
        halves = [np.corrcoef(voxels.ravel(), np.flip(voxels, axis).ravel())[0, 1] for axis in range(3)]
        # Left and right of a head are most similar, top and bottom least.
        assert halves[0] == max(halves) > 0.6, (subject, halves)


@needs_scans
def test_heads_of_one_scanner_lie_in_the_same_place(heads):
    found = list(volumes(heads, "ixi").values())
    mean = np.mean(found, axis=0)
    for voxels in found:
        turned = [np.corrcoef(mean.ravel(), np.flip(voxels, axis).ravel())[0, 1] for axis in (1, 2)]
        assert np.corrcoef(mean.ravel(), voxels.ravel())[0, 1] > max(0.8, *turned)


@pytest.mark.skipif(not AWKWARD_FILES, reason="no ../shared/data/awkward beside this checkout")
@pytest.mark.parametrize("path", AWKWARD_FILES, ids=lambda path: path.name)
def test_an_awkward_file_builds_a_set_or_is_refused_with_its_name_and_problem(run_cli, tmp_path, path):
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / path.name).symlink_to(path)
    (tmp_path / "cohorts.yaml").write_text(f"{GEOMETRY}cohorts: [{{name: a, high: 'scan/{{subject}}{suffix}'}}]\n")
    code, _, err = run_cli(main, *arguments(tmp_path))
    assert "Traceback" not in err
    if path.name not in REFUSED:
        assert code == 0, err
        assert run_cli(verify, tmp_path / "shards")[0] == 0
        return
    assert code == 2
    assert err.splitlines()[-1].startswith("upfield shard: error: 1 of 1 subject has 1 problem,")
    # The printed table shortens long paths; the file of problems does not.
    assert path.name.removesuffix(suffix) in err
    (problem,) = json.loads((tmp_path / "shards.problems.json").read_text())["problems"]
    assert problem["file"] == str(tmp_path / "scan" / path.name)
    assert REFUSED[path.name] in problem["message"]
    assert not (tmp_path / "shards/manifest.json").exists()
