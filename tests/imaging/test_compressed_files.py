import gzip
import struct

import numpy as np
import pytest

from upfield.imaging.compressed_files import DAMAGED, Trace, is_whole, read_content, trace

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
OTHER = CONTENT[:1_500_000] + b"\0" + CONTENT[1_500_001:]


def compressed(path, content, level=6, mtime=0):
    path.write_bytes(gzip.compress(content, level, mtime=mtime))
    return path


def plain(path, content):
    path.write_bytes(content)
    return path


def blocked(path, content):
    """Write blocked gzip: members of at most 64 KiB with their lengths in an extra field, and an empty last member."""
    with path.open("wb") as file:
        for first in [*range(0, len(content), 60_000), len(content)]:
            member = gzip.compress(content[first : first + 60_000], mtime=0)
            extra = b"BC" + struct.pack("<HH", 2, len(member) + 8 - 1)
            file.write(member[:3] + b"\x04" + member[4:10] + struct.pack("<H", len(extra)) + extra + member[10:])
    return path


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
