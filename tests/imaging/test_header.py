import errno
import gzip
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from upfield.common.errors import RunError, VolumeError
from upfield.imaging import header as header_module
from upfield.imaging.compressed_files import read_content
from upfield.imaging.header import read_header

AFFINE = np.array([[0, 0, 3, -30], [-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 0, 1]])
VOXELS: Any = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def save(path, affine=AFFINE, voxels: Any = VOXELS, kind: Any = nib.Nifti1Image):
    kind(voxels, affine).to_filename(path)
    return path


def without_codes(path, **fields):
    """Write a NIfTI file that does not state the directions of its axes, with the given header fields."""
    content = bytearray(nib.Nifti1Image(VOXELS, AFFINE).to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]))
    for name, value in {"qform_code": 0, "sform_code": 0, **fields}.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mgh_without_flag(path, flag):
    content = bytearray(nib.MGHImage(VOXELS, AFFINE).to_bytes())
    content[28:30] = flag.to_bytes(2, "big")
    path.write_bytes(gzip.compress(content) if path.suffix == ".mgz" else content)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.nii", nib.Nifti1Image),
        ("a.nii.gz", nib.Nifti1Image),
        ("A.NII.GZ", nib.Nifti1Image),
        ("a.nii", nib.Nifti2Image),
        ("a.mgh", nib.MGHImage),
        ("a.mgz", nib.MGHImage),
        ("a.img", nib.Nifti1Pair),
    ],
)
def test_a_header_has_the_values_that_nibabel_reads(tmp_path, name, kind):
    path = save(tmp_path / name, kind=kind)
    header = read_header(path)
    # nib.load would leave an .mgh file open.
    image: Any = nib.load(path) if kind is nib.Nifti1Pair else kind.from_bytes(read_content(path, 10_000))
    assert header.shape == image.shape
    assert header.layout.dtype == image.get_data_dtype()
    np.testing.assert_array_equal(header.affine, image.affine)
    np.testing.assert_allclose(header.spacing_mm, [1.5, 2, 3], rtol=1e-6)
    assert header.is_oriented
    assert header.has_spacing == (True, True, True)
    assert header.forms_differ_deg < 0.1
    assert header.unit == "mm"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgh", "a.mgz"])
def test_no_voxel_is_read(tmp_path, name):
    voxels = np.random.default_rng(0).normal(size=(60, 60, 60)).astype(np.float32)
    path = save(tmp_path / name, voxels=voxels, kind=nib.MGHImage if "mg" in name else nib.Nifti1Image)
    path.write_bytes(path.read_bytes()[:20_000])
    assert read_header(path).shape == (60, 60, 60)


@pytest.mark.parametrize(("shape", "kept"), [((4, 5, 6, 1, 1), (4, 5, 6)), ((4, 5, 1, 1), (4, 5, 1)), ((4, 5), (4, 5))])
def test_trailing_ones_beyond_the_third_dimension_are_dropped(tmp_path, shape, kept):
    assert read_header(save(tmp_path / "a.nii", voxels=np.zeros(shape, np.int16))).shape == kept


def test_a_file_that_states_no_axes_gets_the_callers_axes(tmp_path):
    path = without_codes(tmp_path / "a.nii.gz")
    assert not read_header(path).is_oriented
    image: Any = nib.load(path)
    np.testing.assert_array_equal(read_header(path).affine, image.affine)
    header = read_header(path, "PSR")
    assert header.is_oriented
    assert nib.aff2axcodes(header.affine) == ("P", "S", "R")
    np.testing.assert_allclose(header.spacing_mm, [1.5, 2, 3])
    np.testing.assert_allclose(header.affine @ [1.5, 2, 2.5, 1], [0, 0, 0, 1])


@pytest.mark.parametrize(("name", "flag"), [("a.mgh", 0), ("a.mgz", 0), ("b.mgz", 0xFFFF)])
def test_an_mgh_file_without_its_flag_gets_the_callers_axes(tmp_path, name, flag):
    path = mgh_without_flag(tmp_path / name, flag)
    assert not read_header(path).is_oriented
    assert nib.aff2axcodes(read_header(path).affine) == ("L", "I", "A")
    assert nib.aff2axcodes(read_header(path, "ASR").affine) == ("A", "S", "R")
    np.testing.assert_allclose(read_header(path, "ASR").spacing_mm, [1.5, 2, 3])


def test_an_analyze_file_gets_the_callers_axes(tmp_path):
    nib.Spm99AnalyzeImage(VOXELS, np.diag([1.5, 2, 3, 1])).to_filename(tmp_path / "a.img")
    (tmp_path / "a.mat").unlink()
    assert not read_header(tmp_path / "a.img").is_oriented
    assert nib.aff2axcodes(read_header(tmp_path / "a.img", "RPI").affine) == ("R", "P", "I")


@pytest.mark.parametrize("name", ["a.nii", "a.mgz", "pair.img"])
def test_a_file_that_states_its_axes_overrides_the_caller(tmp_path, name):
    kind = {"nii": nib.Nifti1Image, "mgz": nib.MGHImage, "img": nib.Nifti1Pair}[name[-3:]]
    path = save(tmp_path / name, kind=kind)
    np.testing.assert_array_equal(read_header(path, "RAS").affine, read_header(path).affine)


@pytest.mark.parametrize("code", ["qform_code", "sform_code"])
def test_one_form_is_enough(tmp_path, code):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, int(code == "qform_code"))
    image.set_sform(AFFINE, int(code == "sform_code"))
    image.to_filename(tmp_path / "a.nii")
    header = read_header(tmp_path / "a.nii")
    assert header.is_oriented
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("code", [6, 99, -1])
def test_a_code_that_nifti_does_not_list_counts_as_unset(tmp_path, code):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, 1)
    content = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["sform_code"] = code
    header["srow_x"] = 7
    content[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(content)
    read = read_header(tmp_path / "a.nii")
    assert (read.sform_code, read.qform_code) == (0, 1)
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-5)


def test_a_voxel_size_of_zero_counts_as_missing(tmp_path):
    header = read_header(without_codes(tmp_path / "a.nii", pixdim=[1, 1.5, 0, np.nan, 0, 0, 0, 0]), "RAS")
    assert header.has_spacing == (True, False, False)


@pytest.mark.parametrize(("code", "unit"), [(0, "mm"), (1, "m"), (2, "mm"), (3, "um"), (10, "mm"), (255, "mm")])
def test_the_unit_comes_from_the_header(tmp_path, code, unit):
    assert read_header(without_codes(tmp_path / "a.nii", xyzt_units=code)).unit == unit


def test_forms_are_compared_axis_by_axis(tmp_path):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE @ np.diag([-1, 1, 1, 1]), 1)
    image.to_filename(tmp_path / "a.nii")
    assert read_header(tmp_path / "a.nii").forms_differ_deg == pytest.approx(180, abs=0.1)


def altered(offset, new):
    content = bytearray(nib.Nifti1Image(VOXELS, AFFINE).to_bytes())
    content[offset : offset + len(new)] = new
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii", b"", "the file is empty"),
        ("a.nii.gz", b"", "the file is empty"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\n", r"this text only points to the real file"),
        ("a.nii.gz", b"sub-Jane: a text", r"file \(BadGzipFile: Not a gzipped file"),
        ("a.nii.gz", gzip.compress(bytes(1000), mtime=0)[:15], r"file \(EOFError"),
        ("a.nii", gzip.compress(altered(0, b"")), "the file is compressed, but its name does not say so. Rename it"),
        ("a.nii.gz", altered(0, b""), "the file is not compressed, but its name says so. Rename it"),
        ("a.nii", bytes(100), r"file \(ImageFileError: 100 bytes that are not a NIfTI or MGH header"),
        ("a.mgz", gzip.compress(b"\0\0\0\1\0\0", mtime=0), r"file \(ValueError"),
        ("a.nii", altered(70, np.array(999, "<i2").tobytes()), r"file \(HeaderDataError: data code 999 not recognized"),
        ("a.nii", altered(70, np.array(32, "<i2").tobytes()), "expected real voxels, found type complex64"),
        (
            "a.nii",
            altered(42, np.array([4, 0, 6], "<i2").tobytes()),
            r"the file holds no voxels \(shape \(4, 0, 6\)",
        ),
        ("a.nii", altered(42, np.array([4, -5, 6], "<i2").tobytes()), r"the file holds no voxels \(shape \(4, -5"),
        ("a.nii", altered(42, np.array([30000] * 3, "<i2").tobytes()), "expected at most 1073741824 voxels"),
        ("a.nii", altered(112, np.array([1, np.nan], "<f4").tobytes()), "invalid intercept nan"),
    ],
)
def test_a_file_that_is_not_a_volume_is_refused_with_a_problem_that_does_not_name_it(tmp_path, name, content, message):
    path = tmp_path / f"sub-Jane_{name}"
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=message) as caught:
        read_header(path)
    assert caught.value.where == str(path)
    assert "/" not in caught.value.problem.replace("https://", "")
    assert "Jane" not in caught.value.problem


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(VolumeError, match=r"a.nii: there is no such file. Check the path."):
        read_header(tmp_path / "a.nii")
    with pytest.raises(VolumeError, match=r"folder.nii: this is a folder, not a file. Check the path."):
        read_header(tmp_path / "folder.nii")


def test_headers_with_random_damage_are_read_or_refused(tmp_path):
    generator = np.random.default_rng(0)
    kinds: tuple[Any, ...] = (nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage)
    for kind in kinds:
        whole = np.frombuffer(kind(VOXELS, AFFINE).to_bytes(), np.uint8)
        path = tmp_path / ("sub-Jane.mgh" if kind is nib.MGHImage else "sub-Jane.nii")
        for _ in range(200):
            damaged = whole.copy()
            damaged[generator.integers(0, 90 if kind is nib.MGHImage else 344, 4)] = generator.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                header = read_header(path, "RAS")
            except VolumeError as error:
                assert "Jane" not in error.problem  # noqa: PT017
                continue
            assert header.affine.shape == (4, 4)
            assert header.layout.dtype.kind in "iufb"


@pytest.mark.parametrize("trouble", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_an_error_of_the_machine_is_not_blamed_on_the_file(tmp_path, monkeypatch, trouble):
    path = save(tmp_path / "a.nii.gz")

    def failing(*_):
        raise trouble

    monkeypatch.setattr(header_module, "read_start", failing)
    with pytest.raises(RunError, match=r"a\.nii\.gz: the file cannot be read: .*\. Fix that and run"):
        read_header(path)
