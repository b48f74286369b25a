import errno
import json
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image, load
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from upfield.sharding.building import saved_volumes as gridfiles
from upfield.sharding.shard import main

LOW_SHAPE, LOW_SPACING_MM = (20, 24, 11), (2.0, 2.0, 4.0)
HIGH_SHAPE, HIGH_SPACING_MM = (40, 48, 44), (1.0, 1.0, 1.0)
# Files on grids that differ from the set's grids, rotated in the scanner and away from its centre.
LOW_FILE, LOW_FILE_MM = (22, 26, 20), (1.8, 1.9, 2.5)
HIGH_FILE, HIGH_FILE_MM = (46, 44, 52), (0.9, 1.1, 0.95)
HEAD_MM = np.array([12.0, -31.0, 57.0])
# Bright spots in the head, none the mirror image of another: offset from the centre of the head, width, brightness.
SPOTS = [((0, 0, 0), 9.0, 600.0), ((9, 4, -6), 4.0, 500.0), ((-6, -9, 5), 5.0, 400.0), ((2, 10, 9), 4.5, 300.0)]
COHORTS = """\
geometry: {low_shape: [20, 24, 11], low_spacing_mm: [2, 2, 4], high_shape: [40, 48, 44], high_spacing_mm: [1, 1, 1]}
# Without blur, darkening and noise, a synthetic low field shows where it lies.
synthetic: {sigma_vox: [0, 0], gamma: [1, 1], noise_std: [0, 0]}
subjects_per_block: 1
cohorts:
  - {name: boxed, low: '{subject}_low.nii.gz', high: '{subject}_high.nii.gz', fit: crop_pad, synthetic: 2}
  - {name: forced, low: 'slices/{subject}_low_{slice}.nii', high: 'slices/{subject}_high_{slice}.nii', fit: resize}
  - {name: alone, high: '{subject}_only.nii.gz', split: {val: 1}}
"""


def signal(world_mm):
    """Brightness `(N,)` at points `(3, N)` in scanner coordinates."""
    each = [
        height * np.exp(-(((world_mm.T - HEAD_MM - place) / width) ** 2).sum(axis=1) / 2)
        for place, width, height in SPOTS
    ]
    return np.sum(each, axis=0)


def load_image(path) -> Any:
    return load(path)


def places(affine, shape):
    """World mm of every voxel, `(3, I*J*K)`."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    return affine[:3, :3] @ voxels + affine[:3, 3:]


def scanned(shape, spacing_mm, turn_deg):
    """A scan of the head, `(I, J, K)`, in a box that is rotated about two axes, and its affine."""
    cosine, sine = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * spacing_mm
    affine[:3, 3] = HEAD_MM + np.array([1.5, -1, 0.5]) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    voxels = signal(places(affine, shape)).reshape(shape)
    return voxels.astype(np.float32), affine


def save(path, voxels, affine, axcodes):
    """Store a volume, which is RAS+ as nearly as possible, in another order of axes."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
    stored = affine @ inv_ornt_aff(turn, voxels.shape)
    Nifti1Image(apply_orientation(voxels, turn), stored).to_filename(path)


def save_slices(folder, name, voxels, affine):
    folder.mkdir(exist_ok=True)
    for number in range(voxels.shape[2]):
        placed = affine.copy()
        placed[:3, 3] += number * affine[:3, 2]
        Nifti1Image(voxels[:, :, number], placed).to_filename(folder / f"{name}_{number}.nii")


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Whole volumes stored P-S-R and L-I-A, slice stacks, and volumes without low field; treat it as read-only."""
    folder = tmp_path_factory.mktemp("scans")
    low, high = scanned(LOW_FILE, LOW_FILE_MM, 11), scanned(HIGH_FILE, HIGH_FILE_MM, 11)
    for name in ("anna", "bert"):
        save(folder / f"{name}_low.nii.gz", *low, "LIA")
        save(folder / f"{name}_high.nii.gz", *high, "PSR")
        low, high = scanned(LOW_FILE, LOW_FILE_MM, -8), scanned(HIGH_FILE, HIGH_FILE_MM, -8)
    save_slices(folder / "slices", "carl_low", *scanned(LOW_FILE, LOW_FILE_MM, 15))
    save_slices(folder / "slices", "carl_high", *scanned(HIGH_FILE, HIGH_FILE_MM, 15))
    save(folder / "dora_only.nii.gz", *scanned(HIGH_FILE, HIGH_FILE_MM, 5), "SPL")
    save(folder / "emil_only.nii.gz", *scanned(HIGH_FILE, HIGH_FILE_MM, -3), "IAR")
    (folder / "cohorts.yaml").write_text(COHORTS)
    return folder


def arguments(scans, out, *more):
    return [str(a) for a in ("--config", scans / "cohorts.yaml", "--out", out, "--jobs", 1, *more)]


@pytest.fixture(scope="session")
def built(scans, tmp_path_factory):
    """A set and the volumes saved beside it; treat both as read-only."""
    folder = tmp_path_factory.mktemp("gridfiles")
    assert main(arguments(scans, folder / "shards", "--save_volumes", folder / "volumes")) == 0
    return folder


EXPECTED = [
    *(
        f"boxed/{name}_{kind}"
        for name in ("anna", "bert")
        for kind in ("high", "low", *map("low-synthetic-{}".format, (0, 1)))
    ),
    *(f"forced/carl_{kind}" for kind in ("high", "low", "low-synthetic-0")),
    *(f"alone/{name}_{kind}" for name in ("dora", "emil") for kind in ("high", "low-synthetic-0")),
]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def volume(folder, name):
    return load_image(folder / f"volumes/{name}.nii.gz")


def shown_inside(image, file_shape, file_affine):
    """Values of the voxels inside the file's outermost voxels, and the scanned brightness at their positions.

    Between the two outermost voxels of the file, cubic interpolation takes the air outside into account.
    """
    world = places(image.affine, image.shape)
    index = np.linalg.inv(file_affine[:3, :3]) @ (world - file_affine[:3, 3:])
    inside = ((index >= 1) & (index <= np.array(file_shape)[:, None] - 2)).all(axis=0)
    assert inside.mean() > 0.3
    return image.get_fdata().reshape(-1)[inside], signal(world[:, inside])


def file_box(scans, name):
    """Shape and affine of the file from which a volume was made."""
    if name.startswith("forced"):
        paths = [scans / f"slices/carl_{name.split('_')[1]}_{number}.nii" for number in (0, 1)]
        first, second = (load_image(path).affine for path in paths)
        affine = first.copy()
        affine[:3, 2] = second[:3, 3] - first[:3, 3]
        return (LOW_FILE if name.endswith("_low") else HIGH_FILE), affine
    subject, _, field = name.partition("/")[2].partition("_")
    image = load_image(scans / f"{subject}_{'only' if name.startswith('alone') else field}.nii.gz")
    return image.shape, image.affine


def test_every_volume_of_every_subject_is_saved_under_its_name_and_nothing_else(built):
    assert sorted(files(built / "volumes")) == sorted(f"{name}.nii.gz" for name in EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_saved_volumes_have_the_grids_shape_and_scanner_coordinates(built, name):
    image = volume(built, name)
    low = "_low" in name
    assert image.shape == (LOW_SHAPE if low else HIGH_SHAPE)
    assert image.get_data_dtype() == np.float32
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert (int(image.header["sform_code"]), image.header.get_xyzt_units()[0]) == (1, "mm")
    if not name.startswith("forced"):
        np.testing.assert_allclose(image.header.get_zooms(), LOW_SPACING_MM if low else HIGH_SPACING_MM, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in EXPECTED if "synthetic" not in name])
def test_every_voxel_of_a_saved_volume_shows_the_scanned_brightness_at_its_position(built, scans, name):
    found, expected = shown_inside(volume(built, name), *file_box(scans, name))
    assert np.ptp(expected) > 700
    # A shift of 1 mm would change some of them by more than 80. Cubic interpolation of thick slices changes them by
    # a few units, most beside the border of the file, beyond which there is air.
    assert np.abs(found - expected).max() < (6 if name.endswith("_low") else 2)


@pytest.mark.parametrize("name", [name for name in EXPECTED if "synthetic" in name])
def test_a_synthetic_low_field_lies_where_its_high_field_does(built, scans, name):
    high = volume(built, name.partition("_")[0] + "_high")
    darkest, brightest = np.percentile(high.get_fdata(), [1, 99])
    found, expected = shown_inside(volume(built, name), high.shape, high.affine)
    expected = np.clip((expected - darkest) / (brightest - darkest), 0, 1)
    # Half a slice of 4 mm lies beyond the last slice of 1 mm, where the border value is repeated.
    assert np.abs(found - expected).max() < 0.07
    assert np.abs(found - expected).mean() < 0.002


def test_saving_volumes_changes_no_byte_of_the_set(run_cli, built, scans, tmp_path):
    assert run_cli(main, *arguments(scans, tmp_path / "shards"))[0] == 0
    assert files(tmp_path / "shards") == files(built / "shards")
    # The low field of some scans is finer than the grid, which the report names.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "shards.problems.json"]


def test_two_jobs_save_the_same_bytes_as_one(run_cli, built, scans, tmp_path):
    flags = ("--save_volumes", tmp_path / "volumes", "--jobs", 2)
    assert run_cli(main, *arguments(scans, tmp_path / "shards", *flags))[0] == 0
    assert files(tmp_path / "volumes") == files(built / "volumes")


def test_a_volume_that_cannot_be_written_is_absent_and_the_same_command_saves_all(
    run_cli, monkeypatch, built, scans, tmp_path
):
    saved: list[str] = []

    def fill_up(image, path, write=gridfiles.Nifti1Image.to_filename):
        write(image, path)
        if len(saved) == 5:
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        saved.append(path.name)

    flags = ("--save_volumes", tmp_path / "volumes")
    with monkeypatch.context() as patch:
        patch.setattr(gridfiles.Nifti1Image, "to_filename", fill_up)
        code, _, err = run_cli(main, *arguments(scans, tmp_path / "shards", *flags))
    assert code == 1
    assert "No space left on device" in err.splitlines()[-1]
    left = files(tmp_path / "volumes")
    assert len(left) == 5
    assert left.items() <= files(built / "volumes").items()
    assert run_cli(main, *arguments(scans, tmp_path / "shards", *flags))[0] == 0
    assert files(tmp_path / "volumes") == files(built / "volumes")
    assert files(tmp_path / "shards") == files(built / "shards")


def test_with_pseudonyms_saved_volumes_are_named_by_them(run_cli, scans, tmp_path):
    flags = ("--save_volumes", tmp_path / "volumes", "--pseudonymize")
    assert run_cli(main, *arguments(scans, tmp_path / "shards", *flags))[0] == 0
    names = files(tmp_path / "volumes")
    assert len(names) == len(EXPECTED)
    assert not [name for name in names if any(who in name for who in ("anna", "bert", "carl", "dora", "emil"))]
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    subjects = {s["subject"] for split in manifest["splits"].values() for s in split["subjects"]}
    assert {name.partition("/")[2].partition("_")[0] for name in names} == subjects


def test_a_complete_set_saves_volumes_that_are_requested_later(run_cli, built, scans, tmp_path):
    assert run_cli(main, *arguments(scans, tmp_path / "shards"))[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")}
    assert run_cli(main, *arguments(scans, tmp_path / "shards", "--save_volumes", tmp_path / "volumes"))[0] == 0
    assert files(tmp_path / "volumes") == files(built / "volumes")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_build_saves_volumes_of_finished_blocks_that_are_requested_later(
    run_cli, monkeypatch, built, scans, tmp_path
):
    def stop(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("upfield.sharding.building.build.write_manifest", stop)
        assert run_cli(main, *arguments(scans, tmp_path / "shards"))[0] == 1
    assert run_cli(main, *arguments(scans, tmp_path / "shards", "--save_volumes", tmp_path / "volumes"))[0] == 0
    assert files(tmp_path / "volumes") == files(built / "volumes")


def test_a_subject_that_is_left_out_leaves_no_volumes(run_cli, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    save(folder / "dora_only.nii.gz", *scanned(HIGH_FILE, HIGH_FILE_MM, 0), "RAS")
    # These few voxels nearly vanish on the grid, which is noticed only when the volume is scaled.
    save(folder / "emil_only.nii.gz", *scanned((5, 6, 7), (1, 1, 1), 0), "RAS")
    alone = COHORTS.index("  - {name: alone")
    (folder / "cohorts.yaml").write_text(
        COHORTS[: COHORTS.index("  - {name: boxed")] + COHORTS[alone:].replace("val: 1", "")
    )
    flags = ("--save_volumes", tmp_path / "volumes", "--on_error", "skip")
    code, out, err = run_cli(main, *arguments(folder, tmp_path / "shards", *flags))
    assert code == 0, err
    assert "alone emil: high: percentiles 1 and 99 are both" in out
    assert {name.partition("_")[0] for name in files(tmp_path / "volumes")} == {"alone/dora"}
