import json
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy import ndimage

from upfield.sharding.shard import main
from upfield.sharding.shardset.shard_split import ShardSplit

GEOMETRY = "{low_shape: [6, 7, 4], low_spacing_mm: [2, 2, 3], high_shape: [10, 12, 9], high_spacing_mm: [1, 1, 1]}"
# Some axes are longer than the grid and some shorter, so that volumes are cropped, padded and interpolated.
HIGH_SHAPE, HIGH_SPACING_MM = (12, 10, 11), (1.25, 1.0, 0.75)
LOW_SHAPE, LOW_SPACING_MM = (8, 6, 5), (1.875, 1.75, 2.0)
# Multiples of 1/8 are exact in a header's single precision, for every position of the first voxel.
ORIGIN_MM = (-7.125, 4.5, 30.25)
ORIENTATIONS = [
    np.array([*zip(axes, flips, strict=True)])
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]
STRAIGHT, OBLIQUE_DEG = 0.0, 23.0
HALF_STEP = 2.0**-11  # the distance between neighbouring float16 values just below 1


def head(shape, seed):
    """Draw a bright blob `(I, J, K)` in 0..1 without any symmetry."""
    rng = np.random.default_rng(seed)
    places = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    radius = np.sqrt(sum((place - shift) ** 2 for place, shift in zip(places, (0.1, -0.15, 0.05), strict=True)))
    return (radius < 0.8) * (0.4 + 0.6 * rng.random(shape)) + 0.02 * rng.random(shape)


def whole_numbers(image):
    return np.rint(1000 * image).astype(np.int16)


HIGH = whole_numbers(ndimage.gaussian_filter(head(HIGH_SHAPE, 1), 0.7))
LOW = whole_numbers(head(LOW_SHAPE, 2))


def affine_of(spacing_mm, turn_deg=STRAIGHT):
    """Return an affine that is rotated about two axes."""
    cosine, sine = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * spacing_mm
    affine[:3, 3] = ORIGIN_MM
    return affine


def save(path, voxels, affine, kind: Any = nib.Nifti1Image):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind(voxels, affine).to_filename(path)
    return path


def save_reoriented(path, voxels, affine, orientation):
    """Save a volume with its axes in another order. Every voxel keeps its position in the world."""
    save(path, apply_orientation(voxels, orientation), affine @ inv_ornt_aff(orientation, voxels.shape))


@pytest.fixture
def build(run_cli):
    """A function that builds the shard set of a folder's cohorts, which are given as YAML lines."""

    def run(folder, *cohorts):
        lines = "".join(f"  - {cohort}\n" for cohort in cohorts)
        (folder / "cohorts.yaml").write_text(f"geometry: {GEOMETRY}\nsamples_per_shard: 16\ncohorts:\n{lines}")
        code, _, err = run_cli(
            main, "--config", folder / "cohorts.yaml", "--out", folder / "shards", "--jobs", 1, "--context", 1
        )
        assert code == 0, err
        return folder / "shards"

    return run


def contents(root):
    """Return the bytes of all files, and the manifest without its entries about the source files."""
    found = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    manifest = json.loads(found.pop(Path("manifest.json")))
    assert manifest.pop("sources")
    assert manifest.pop("manifest_sha256")
    return found | {Path("manifest.json"): manifest}


def shards(root):
    return {name: content for name, content in contents(root).items() if name.suffix in (".tar", ".idx")}


def arrays(root):
    split = ShardSplit(root, "train")
    low = np.empty((split.num_samples, *split.low_shape), np.float16)
    high = np.empty((split.num_samples, *split.high_shape), np.float16)
    split.read_into(range(split.num_samples), low, high)
    return low.astype(np.float32), high.astype(np.float32)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_all_orientations_of_volumes_give_the_same_set_byte_for_byte(build, tmp_path, step):
    cohorts = [
        "{name: pair, low: '{subject}_low.nii', high: '{subject}_high.nii'}",
        "{name: alone, high: '{subject}_oblique.nii'}",
        "{name: forced, high: '{subject}_forced.nii', fit: resize}",
    ]
    first = {}
    for number, orientation in list(enumerate(ORIENTATIONS))[::step]:
        folder = tmp_path / str(number)
        save_reoriented(folder / "s_high.nii", HIGH, affine_of(HIGH_SPACING_MM), orientation)
        # The two fields of a pair may be stored in different orientations.
        other = ORIENTATIONS[(7 * number + 3) % 48]
        save_reoriented(folder / "s_low.nii", LOW, affine_of(LOW_SPACING_MM), other)
        save_reoriented(
            folder / "s_oblique.nii", HIGH + np.int16(1), affine_of((0.7, 0.9, 1.1), OBLIQUE_DEG), orientation
        )
        save_reoriented(
            folder / "s_forced.nii", HIGH + np.int16(2), affine_of((0.7, 0.9, 1.1), OBLIQUE_DEG), orientation
        )
        found = contents(build(folder, *cohorts))
        first = first or found
        assert found == first, orientation
    assert len(first) == 2 * 3 + 1 + 1  # 40 samples in 3 shards, with indices, the index of the split, and the manifest


def test_orientations_of_an_oblique_pair_differ_by_no_more_than_a_headers_rounding(build, tmp_path):
    cohort = "{name: pair, low: '{subject}_low.nii', high: '{subject}_high.nii', synthetic: 0}"
    found = []
    for number, orientation in enumerate(ORIENTATIONS[::5]):
        folder = tmp_path / str(number)
        save_reoriented(folder / "s_high.nii", HIGH, affine_of(HIGH_SPACING_MM, OBLIQUE_DEG), orientation)
        save_reoriented(
            folder / "s_low.nii", LOW, affine_of(LOW_SPACING_MM, OBLIQUE_DEG), ORIENTATIONS[47 - 5 * number]
        )
        found.append(arrays(build(folder, cohort)))
    for low, high in found[1:]:
        np.testing.assert_array_equal(high, found[0][1])
        np.testing.assert_allclose(low, found[0][0], rtol=0, atol=HALF_STEP)


def save_stack(folder, name, voxels, affine, axis, sign):
    """Write one file per slice along `axis`, each with its position. `sign` -1 numbers the slices from the end."""
    for number in range(voxels.shape[axis]):
        index = number if sign > 0 else voxels.shape[axis] - 1 - number
        placed = affine.copy()
        placed[:3, 3] += index * affine[:3, axis]
        save(folder / f"s_{name}_{number}.nii", np.take(voxels, [index], axis=axis), placed)


def test_stacks_cut_along_any_axis_from_either_end_give_the_shards_of_the_whole_volumes(build, tmp_path):
    save(tmp_path / "whole/s_low.nii", LOW, affine_of(LOW_SPACING_MM))
    save(tmp_path / "whole/s_high.nii", HIGH, affine_of(HIGH_SPACING_MM))
    cohort = "{name: a, low: '{subject}_low.nii', high: '{subject}_high.nii', fit: crop_pad}"
    expected = shards(build(tmp_path / "whole", cohort))
    stacked = cohort.replace("low.nii", "low_{slice}.nii").replace("high.nii", "high_{slice}.nii")
    for axis, sign in product(range(3), (1, -1)):
        folder = tmp_path / f"{axis}{sign}"
        save_stack(folder, "high", HIGH, affine_of(HIGH_SPACING_MM), axis, sign)
        save_stack(folder, "low", LOW, affine_of(LOW_SPACING_MM), (axis + 1) % 3, -sign)
        assert shards(build(folder, stacked)) == expected, (axis, sign)


def scaled(voxels, affine, slope, intercept):
    """Store `voxels` `(I, J, K)` as whole numbers with a slope and an intercept."""
    image = nib.Nifti1Image(np.rint((voxels - intercept) / slope).astype(np.int16), affine)
    # With slope and intercept in the header, nibabel stores the whole numbers unchanged.
    image.header.set_slope_inter(slope, intercept)
    return image


def stored_as(dtype, kind: Any = nib.Nifti1Image):
    return lambda voxels, affine: kind(voxels.astype(dtype), affine)


def big_endian(voxels, affine):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    return nib.Nifti1Image(voxels, affine, header)


@pytest.mark.parametrize(
    ("suffix", "image_of"),
    [
        ("nii", stored_as(np.float32)),
        ("nii", stored_as(np.float64)),
        ("nii", stored_as(np.uint16)),
        ("nii", stored_as(np.int16, nib.Nifti2Image)),
        ("nii", big_endian),
        ("nii.gz", big_endian),
        ("nii.gz", stored_as(np.int16)),
        ("nii.gz", lambda voxels, affine: scaled(voxels, affine, 0.5, -3)),
        ("mgz", stored_as(np.int16, nib.MGHImage)),
        ("mgh", stored_as(np.float32, nib.MGHImage)),
    ],
    ids=["float32", "float64", "uint16", "nifti2", "big-endian", "big-endian.gz", "int16.gz", "slope", "mgz", "mgh"],
)
def test_whole_numbers_give_the_same_shards_for_every_data_type_and_format(build, tmp_path, suffix, image_of):
    cohort = "{name: a, high: '{subject}.SUFFIX'}"
    save(tmp_path / "plain/s.nii", HIGH, affine_of(HIGH_SPACING_MM))
    expected = shards(build(tmp_path / "plain", cohort.replace("SUFFIX", "nii")))
    (tmp_path / "other").mkdir()
    image_of(HIGH, affine_of(HIGH_SPACING_MM)).to_filename(tmp_path / f"other/s.{suffix}")
    assert shards(build(tmp_path / "other", cohort.replace("SUFFIX", suffix))) == expected


def test_a_coarser_type_costs_no_more_than_its_own_precision(build, tmp_path):
    values, affine = np.sqrt(HIGH + 1.0).astype(np.float32), affine_of((1.0, 1.0, 1.0))
    save(tmp_path / "fine/s.nii", values, affine)
    (tmp_path / "coarse").mkdir()
    scaled(values, affine, np.ptp(values) / 1000, -5).to_filename(tmp_path / "coarse/s.nii")
    cohort = "{name: a, high: '{subject}.nii'}"
    (_, fine), (_, coarse) = (arrays(build(tmp_path / name, cohort)) for name in ("fine", "coarse"))
    # The error is half a step of 1/1000 in the voxel and in both percentiles that scale it, and half precision. This
    # volume has no air, so the darkest value that counts as air, and with it percentile 1, moves by several steps.
    assert 0 < np.abs(fine - coarse).max() < 1e-2
