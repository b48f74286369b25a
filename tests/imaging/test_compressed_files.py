import gzip

import pytest
from gzip_files import CONTENT, blocked, compressed, plain

from upfield.imaging.compressed_files import DAMAGED, Trace, is_whole, read_content, trace


def test_length_and_crc_come_from_the_trailer_of_gzip(tmp_path):
    path = compressed(tmp_path / "a.nii.gz", b"123456789")
    assert trace(path) == Trace(9, 0xCBF43926)  # CRC-32's published check value
    damaged = bytearray(path.read_bytes())
    damaged[12] ^= 255
    path.write_bytes(damaged)
    assert trace(path) == Trace(9, 0xCBF43926)


def test_the_trace_of_blocked_gzip_comes_from_its_content(tmp_path):
    path = blocked(tmp_path / "a.nii.gz", CONTENT)
    assert gzip.decompress(path.read_bytes()) == CONTENT
    assert trace(path) == trace(compressed(tmp_path / "b.nii.gz", CONTENT))


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


def test_blocked_gzip_that_was_cut_off_cannot_be_traced(tmp_path):
    path = blocked(tmp_path / "a.nii.gz", CONTENT)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DAMAGED):
        trace(path)


def test_a_flipped_bit_after_the_requested_bytes_is_found(tmp_path):
    path = compressed(tmp_path / "a.nii.gz", CONTENT)
    assert read_content(path, 1000) == CONTENT[:1000]
    damaged = bytearray(path.read_bytes())
    damaged[-100_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DAMAGED):
        read_content(path, 1000)
