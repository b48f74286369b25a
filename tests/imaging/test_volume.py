import gzip
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from upfield.common.errors import VolumeError
from upfield.imaging.volume import read_stack, read_volume, to_ras

AWKWARD = Path(__file__).parents[3] / "shared/data/awkward"
AWKWARD_FILES = sorted(AWKWARD.glob("*.nii*")) if AWKWARD.is_dir() else []
AFFINE = np.array([[1.5, 0, 0, -10], [0, 2, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]])
ORIENTATIONS = [
    np.array([*zip(axes, flips, strict=True)])
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def save(path, voxels, affine=AFFINE, kind: Any = nib.Nifti1Image):
    kind(voxels, affine).to_filename(path)
    return path


def save_slices(folder, voxels, affine, axis):
    """Write one file per slice along `axis`, each with its position in its affine."""
    paths = []
    for number in range(voxels.shape[axis]):
        placed = affine.copy()
        placed[:3, 3] += number * affine[:3, axis]
        plane = np.take(voxels, [number], axis=axis)
        paths.append(save(folder / f"{number}.nii", plane, placed))
    return paths


def test_all_48_orientations_of_a_volume_give_the_same_voxels(tmp_path):
    voxels = ramp(4, 5, 6)
    assert len(ORIENTATIONS) == 48
    for orientation in ORIENTATIONS:
        reoriented, affine = apply_orientation(voxels, orientation), AFFINE @ inv_ornt_aff(orientation, voxels.shape)
        volume = read_volume(save(tmp_path / "a.nii", reoriented, affine))
        np.testing.assert_array_equal(volume.voxels, voxels)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_an_oblique_volume_is_reoriented_to_the_nearest_axes_and_keeps_its_position():
    angle = np.deg2rad(20)
    oblique = AFFINE.copy()
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique[:3, :3] = turn @ AFFINE[:3, :3][:, [1, 0, 2]]
    volume = to_ras(ramp(4, 5, 6), oblique, "a")
    np.testing.assert_array_equal(volume.voxels, ramp(4, 5, 6).transpose(1, 0, 2))
    np.testing.assert_allclose(volume.affine @ [3, 2, 1, 1], oblique @ [2, 3, 1, 1])
    np.testing.assert_allclose(volume.spacing_mm, [1.5, 2, 3])


def test_slope_and_intercept_are_applied(tmp_path):
    path = tmp_path / "a.nii"
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(path)
    # The integers start where the header ends.
    stored = np.frombuffer(path.read_bytes(), np.int16, offset=352).reshape((2, 3, 4), order="F")
    volume = read_volume(path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, stored * 0.5 - 3)


def test_trailing_dimensions_of_one_are_dropped(tmp_path):
    np.testing.assert_array_equal(read_volume(save(tmp_path / "a.nii", ramp(4, 5, 6, 1, 1))).voxels, ramp(4, 5, 6))


def test_big_endian_files_give_the_same_voxels(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    nib.Nifti1Image(ramp(4, 5, 6), AFFINE, header).to_filename(tmp_path / "a.nii.gz")
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:4] == b"\x00\x00\x01\x5c"
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").voxels, ramp(4, 5, 6))


def with_nan():
    voxels = ramp(4, 5, 6)
    voxels[1, 2, 3] = np.nan
    return voxels


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (with_nan(), "voxels must be finite, but 1 are NaN or infinite"),
        (np.full((4, 5, 6), 7, np.int16), "every voxel has the value 7"),
        (np.zeros((0, 5, 6), np.int16), "the file holds no voxels"),
        (ramp(4, 5, 6).astype(np.complex64), "expected real voxels, found type complex64"),
        (ramp(4, 5, 6, 3).astype(np.uint8).view([(c, "u1") for c in "RGB"])[..., 0], "expected real voxels"),
        (ramp(4, 5, 6, 2), r"expected 3 dimensions, found 4 \(shape \(4, 5, 6, 2\)\)"),
        (ramp(4, 5), "expected 3 dimensions, found 2"),
    ],
)
def test_a_file_that_is_not_a_volume_is_refused_with_its_path(tmp_path, voxels, message):
    path = save(tmp_path / "a.nii", voxels)
    with pytest.raises(VolumeError, match=rf"^{path}: .*{message}"):
        read_volume(path)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.ones((4, 4)), np.diag([1, 1, np.nan, 1])])
def test_an_affine_without_three_axes_is_refused(affine):
    with pytest.raises(VolumeError, match=r"^head: the affine cannot be inverted"):
        to_ras(ramp(4, 5, 6), affine, "head")


@pytest.mark.parametrize("length", [0, 2, 20, 200, -20])
def test_a_truncated_file_is_refused_with_its_path(tmp_path, length):
    noise = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:length])
    message = "this is not a readable NIfTI file" if length else "the file is empty"
    with pytest.raises(VolumeError, match=rf"^{path}: {message}"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_needs_more_memory_than_any_machine_has_is_refused(tmp_path, suffix):
    content = bytearray(save(tmp_path / "a.nii", ramp(4, 5, 6)).read_bytes())
    content[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(VolumeError, match=rf"^{path}: expected at most \d+ voxels, found shape"):
        read_volume(path)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(VolumeError, match=rf"^{tmp_path}/a.nii: there is no such file"):
        read_volume(tmp_path / "a.nii")


def test_an_image_that_is_not_a_volume_is_refused_with_its_path(tmp_path):
    path = tmp_path / "a.gii"
    nib.GiftiImage().to_filename(path)
    with pytest.raises(VolumeError, match=rf"^{path}: expected a volume, found GiftiImage"):
        read_volume(path)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_stacked_along_their_single_voxel_axis(tmp_path, axis):
    volume = read_stack(save_slices(tmp_path, ramp(4, 5, 6), AFFINE, axis))
    np.testing.assert_array_equal(volume.voxels, ramp(4, 5, 6))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_a_descending_stack_is_flipped(tmp_path):
    paths = save_slices(tmp_path, ramp(4, 5, 6), AFFINE, 2)
    volume = read_stack(paths[::-1])
    np.testing.assert_array_equal(volume.voxels, ramp(4, 5, 6))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_the_spacing_comes_from_the_slices_positions_and_not_from_their_headers(tmp_path):
    thin = np.diag([1.0, 1.0, 1.0, 1.0])
    paths = []
    for number in range(3):
        thin[2, 3] = 5.0 * number
        paths.append(save(tmp_path / f"{number}.nii", ramp(4, 5, 1) + number, thin))
    np.testing.assert_allclose(read_stack(paths).spacing_mm, [1, 1, 5])


def test_slices_without_positions_are_stacked_in_the_given_order(tmp_path):
    paths = [save(tmp_path / f"{number}.nii", ramp(4, 5) + number, AFFINE) for number in range(3)]
    volume = read_stack(paths)
    assert volume.voxels.shape == (4, 5, 3)
    np.testing.assert_array_equal(volume.voxels[0, 0], [0, 1, 2])
    np.testing.assert_allclose(volume.spacing_mm, [1.5, 2, 3])


def test_a_stack_with_a_different_slice_is_refused_with_the_path_of_that_slice(tmp_path):
    paths = [save(tmp_path / "0.nii", ramp(4, 5, 1)), save(tmp_path / "1.nii", ramp(4, 6, 1))]
    with pytest.raises(VolumeError, match=rf"^{paths[1]}: expected a slice of shape \(4, 5\) like the first"):
        read_stack(paths)


def test_a_stack_of_one_and_a_volume_among_slices_are_refused(tmp_path):
    paths = [save(tmp_path / "0.nii", ramp(4, 5, 1)), save(tmp_path / "1.nii", ramp(4, 5, 6))]
    with pytest.raises(VolumeError, match="expected at least 2 slices, found 1"):
        read_stack(paths[:1])
    with pytest.raises(VolumeError, match=rf"^{paths[1]}: expected one slice, found shape \(4, 5, 6\)"):
        read_stack(paths)


@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
def test_an_mgh_volume_equals_the_same_volume_in_nifti(tmp_path, suffix):
    affine = AFFINE[:, [2, 0, 1, 3]] @ np.diag([-1, 1, -1, 1])
    voxels = ramp(4, 5, 6)
    save(tmp_path / f"a{suffix}", voxels, affine, nib.MGHImage)
    volume, other = read_volume(tmp_path / f"a{suffix}"), read_volume(save(tmp_path / "a.nii", voxels, affine))
    np.testing.assert_array_equal(volume.voxels, other.voxels)
    np.testing.assert_allclose(volume.affine, other.affine, atol=1e-4)
    assert volume.axcodes == other.axcodes == ("I", "R", "P")


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path, suffix):
    voxels = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    path = tmp_path / f"a{suffix}"
    save(path, voxels, kind=nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image)
    whole = path.read_bytes()
    # Bits are flipped after gzip's header, because its time stamp and name do not affect the content.
    for place in range(100, len(whole), 1500):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(VolumeError, match=rf"^{path}: this is not a readable NIfTI file"):
            read_volume(path)


def without_codes(path, voxels):
    """Write a file that states a spacing of (1.5, 2, 3) mm but not the directions of its axes."""
    content = bytearray(nib.Nifti1Image(voxels, AFFINE).to_bytes())
    content[252:256] = bytes(4)
    path.write_bytes(content)
    return path


def test_axis_codes_reorient_a_volume_that_states_no_axes(tmp_path):
    path = without_codes(tmp_path / "a.nii", ramp(4, 5, 6))
    volume = read_volume(path, "PSR")
    assert volume.axcodes == ("P", "S", "R")
    np.testing.assert_array_equal(volume.voxels, ramp(4, 5, 6).transpose(2, 0, 1)[:, ::-1])
    np.testing.assert_allclose(volume.spacing_mm, [3, 1.5, 2])
    assert read_volume(path).axcodes == ("L", "A", "S")


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_axis_codes_reorient_a_stack_that_states_no_axes(tmp_path, shape):
    paths = [without_codes(tmp_path / f"{number}.nii", ramp(*shape) + 20 * number) for number in range(6)]
    volume = read_stack(paths, "PSL")
    np.testing.assert_array_equal(volume.voxels[-1, ::-1], ramp(4, 5))
    np.testing.assert_array_equal(volume.voxels[0, ::-1], ramp(4, 5) + 100)
    np.testing.assert_allclose(volume.spacing_mm, [3, 1.5, 2])


def test_axis_codes_do_not_reorient_a_volume_that_states_its_axes(tmp_path):
    path = save(tmp_path / "a.nii", ramp(4, 5, 6))
    np.testing.assert_array_equal(read_volume(path, "LPI").voxels, read_volume(path).voxels)


def test_slices_across_different_axes_are_refused(tmp_path):
    paths = [save(tmp_path / "0.nii", ramp(4, 4, 1)), save(tmp_path / "1.nii", ramp(4, 1, 4))]
    with pytest.raises(VolumeError, match=rf"^{paths[1]}: expected a slice across axis 2 like the first"):
        read_stack(paths)


@pytest.mark.skipif(not AWKWARD_FILES, reason="no ../shared/data/awkward beside this checkout")
@pytest.mark.parametrize("path", AWKWARD_FILES, ids=lambda path: path.name)
def test_real_awkward_files_are_read_correctly_or_refused_with_their_path(path):
    try:
        volume = read_volume(path)
    except VolumeError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        assert path.name not in error.problem  # noqa: PT017
        return
    image = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_allclose(volume.voxels, np.squeeze(image.get_fdata()), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, image.affine)
