import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest
from gzip_files import CONTENT, blocked, compressed, plain

from upfield.imaging.compressed_files import DAMAGED, Trace, is_whole, read_content, trace

SCAN = nib.Nifti1Image(np.random.default_rng(0).integers(0, 999, (9, 30, 40)).astype(np.int16), np.eye(4)).to_bytes()


def test_length_and_crc_come_from_the_trailer_of_gzip_if_its_length_is_that_of_the_header(tmp_path):
    path = compressed(tmp_path / "a.nii.gz", SCAN)
    assert trace(path) == Trace(len(SCAN), zlib.crc32(SCAN))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    path.write_bytes(damaged)
    # The content is not read.
    assert trace(path) == Trace(len(SCAN), zlib.crc32(SCAN))


def test_the_trace_of_blocked_gzip_comes_from_its_content(tmp_path):
    path = blocked(tmp_path / "a.nii.gz", CONTENT)
    assert gzip.decompress(path.read_bytes()) == CONTENT
    assert trace(path) == trace(compressed(tmp_path / "b.nii.gz", CONTENT))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage])
@pytest.mark.parametrize(
    "end",
    [*(bytes(count) for count in (1, 2, 3, 4, 5, 7, 8, 512)), gzip.compress(b""), gzip.compress(b"") + bytes(9)],
    ids=lambda end: f"{len(end)} bytes",
)
def test_what_follows_the_last_voxel_in_gzip_does_not_hide_the_content(tmp_path, kind, end):
    voxels = np.arange(60_000, dtype=np.int16).reshape(30, 40, 50)
    for number in range(2):
        content = kind(voxels + np.int16(number), np.eye(4)).to_bytes()
        path = compressed(tmp_path / "a.nii.gz", content)
        path.write_bytes(path.read_bytes() + end)
        assert trace(path) == Trace(len(content), zlib.crc32(content))


def test_members_that_end_alike_do_not_hide_the_content(tmp_path):
    path = tmp_path / "a.nii.gz"
    for content in (SCAN, SCAN[:1000] + b"!" + SCAN[1001:]):
        path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
        assert trace(path) == Trace(len(content), zlib.crc32(content))


@pytest.mark.parametrize("make", [plain, compressed, blocked])
def test_a_whole_file_holds_as_many_bytes_as_its_header_states(tmp_path, make):
    path = make(tmp_path / ("a.nii" if make is plain else "a.nii.gz"), CONTENT)
    assert is_whole(path, trace(path), len(CONTENT))
    assert is_whole(path, trace(path), len(CONTENT) - 200_000)
    assert not is_whole(path, trace(path), len(CONTENT) + 1)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_that_was_cut_off_is_not_whole(tmp_path, name):
    path = compressed(tmp_path / name, CONTENT) if name.endswith("gz") else plain(tmp_path / name, CONTENT)
    path.write_bytes(path.read_bytes()[:-1000])
    assert not is_whole(path, trace(path), len(CONTENT))


def test_blocked_gzip_that_was_cut_off_is_not_whole(tmp_path):
    path = blocked(tmp_path / "a.nii.gz", CONTENT)
    path.write_bytes(path.read_bytes()[:-1000])
    assert not is_whole(path, trace(path), len(CONTENT))


def test_a_flipped_bit_after_the_requested_bytes_is_found(tmp_path):
    path = compressed(tmp_path / "a.nii.gz", CONTENT)
    assert read_content(path, 1000) == CONTENT[:1000]
    damaged = bytearray(path.read_bytes())
    damaged[-100_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DAMAGED):
        read_content(path, 1000)
