from gzip_files import CONTENT, OTHER, blocked, compressed, plain

from upfield.imaging.compressed_files import Trace, trace
from upfield.sharding.cohorts.duplicates import find_same_content


def found_among(*volumes):
    return find_same_content(volumes, [[trace(path) for path in paths] for paths in volumes])


def test_the_same_content_is_found_whatever_the_compression(tmp_path):
    volumes = [
        [compressed(tmp_path / "a.nii.gz", CONTENT)],
        [compressed(tmp_path / "b.nii.gz", OTHER)],
        [compressed(tmp_path / "c.nii.gz", CONTENT, level=1)],
        [compressed(tmp_path / "d.nii.gz", CONTENT, mtime=1_600_000_000)],
        [plain(tmp_path / "e.nii", CONTENT)],
        [blocked(tmp_path / "f.nii.gz", CONTENT)],
        [plain(tmp_path / "g.nii", OTHER)],
    ]
    assert found_among(*volumes) == [[0, 2, 3, 4, 5], [1, 6]]


def test_plain_files_of_one_size_are_distinguished_by_every_byte(tmp_path):
    volumes = [
        [plain(tmp_path / f"{name}.nii", content)]
        for name, content in zip("abc", (CONTENT, OTHER, CONTENT), strict=True)
    ]
    assert found_among(*volumes) == [[0, 2]]


def test_one_file_under_two_names_has_the_same_content(tmp_path):
    path = compressed(tmp_path / "a.nii.gz", CONTENT)
    (tmp_path / "b.nii.gz").symlink_to(path)
    (tmp_path / "c.nii.gz").hardlink_to(path)
    assert found_among(*([tmp_path / f"{name}.nii.gz"] for name in "abc")) == [[0, 1, 2]]


def test_a_stack_is_the_same_only_with_all_its_slices_in_order(tmp_path):
    black = compressed(tmp_path / "0.nii.gz", bytes(100))
    one, two = (compressed(tmp_path / f"{number}.nii.gz", bytes([number]) * 100) for number in (1, 2))
    assert found_among([black, one, two], [black, two, one], [black, one, black], [black, one, two], [black, one]) == [
        [0, 3]
    ]


def test_equal_length_and_crc_alone_make_no_match(tmp_path):
    first, second = compressed(tmp_path / "a.nii.gz", CONTENT), compressed(tmp_path / "b.nii.gz", OTHER)
    assert find_same_content([[first], [second]], [[Trace(1, 1)], [Trace(1, 1)]]) == []


def test_unreadable_files_equal_no_other(tmp_path):
    volumes = [[plain(tmp_path / f"{name}.nii", CONTENT)] for name in "abc"]
    traces = [[trace(path)] for (path,) in volumes]
    volumes[0][0].unlink()
    assert find_same_content(volumes, traces) == [[1, 2]]
