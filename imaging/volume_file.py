"""Read a volume's file in one pass: first the header, then the voxels."""

from io import BytesIO
from pathlib import Path

from upfield.common.errors import VolumeError
from upfield.common.places import refuse_other_than_scan
from upfield.imaging.compressed_files import Readable, is_compressed, open_content, read_to_end
from upfield.imaging.formats.file_header import HEADER_BYTES, Header
from upfield.imaging.formats.voxel_values import decode_voxels
from upfield.imaging.header import (
    UNREADABLE,
    cut_off,
    expect_file,
    expect_usable_volume,
    is_ours,
    parse_header,
    read_header,
    unreadable,
)
from upfield.imaging.volume import Volume, load_volume, to_ras
from upfield.imaging.volume_header import VolumeHeader


class VolumeFile:
    """An open NIfTI or MGH file, whose header the caller can check before any voxel is read."""

    def __init__(self, path: Path, content: Readable) -> None:
        """Parse the header.

        Args:
            path: path of the file. The suffix decides the format, and error messages name the path.
            content: the file's uncompressed content, open at its start.

        Raises:
            VolumeError: the content is not one 3-D volume of real voxels.
        """
        self._path, self._content = path, content
        try:
            self._start = content.read(HEADER_BYTES)
        except UNREADABLE as error:
            raise unreadable(path, error) from error
        self.header = parse_header(path, self._start)
        expect_usable_volume(self.header, path)

    def read_volume(self) -> Volume:
        """Read the voxels, and reorient the volume to RAS+.

        Returns:
            Voxels `(I, J, K)` float32 in scanner units (slope and intercept applied) and their affine.

        Raises:
            VolumeError: the file is cut off or damaged, or the volume is not finite, is constant, or has no usable
                affine.
        """
        path, layout = self._path, self.header.layout
        assert layout.end_bytes is not None
        try:
            if is_compressed(path):
                rest = read_to_end(self._content, max(layout.end_bytes - len(self._start), 0))
                if len(self._start) + len(rest) < layout.end_bytes:
                    raise cut_off(path, layout.end_bytes)
                voxels = decode_voxels(BytesIO(self._start + rest), layout)
            else:
                if path.stat().st_size < layout.end_bytes:
                    raise cut_off(path, layout.end_bytes)
                voxels = decode_voxels(path, layout)
        except VolumeError:
            raise
        except UNREADABLE as error:
            raise unreadable(path, error) from error
        return to_ras(voxels, self.header.affine, str(path))


def read_scan(path: str | Path) -> Volume:
    """Read a scan and reorient it to RAS+: axis 0 points to the right, axis 1 to the front, axis 2 to the top.

    Args:
        path: a NIfTI or MGH file (`.nii`, `.nii.gz`, `.mgh`, `.mgz`) with one 3-D volume.

    Returns:
        A volume with `voxels` `(X, Y, Z)` float32 in scanner units (slope and intercept applied), `affine` `(4, 4)`
        float64 from voxel index to world mm, and `spacing_mm`.

    Raises:
        InputError: the file is missing or unreadable, or is not one 3-D volume of finite real numbers with an affine.

    Examples:
        >>> import upfield
        >>> scan = upfield.read_scan("scan.nii.gz")
        >>> scan.voxels.shape, scan.spacing_mm.round(1).tolist()
        ((24, 28, 10), [1.6, 1.6, 5.0])
    """
    refuse_other_than_scan(Path(path))
    return read_volume_and_header(Path(path))[0]


def read_volume_and_header(path: Path) -> tuple[Volume, Header]:
    """Read a volume, and the header of its file. A NIfTI or MGH file is read in one pass.

    Args:
        path: `.nii`, `.nii.gz`, `.mgh`, `.mgz`, or anything else that nibabel reads.

    Returns:
        The volume, with voxels `(I, J, K)` float32 in scanner units, and the header.

    Raises:
        VolumeError: the file is missing or unreadable, or is not one usable 3-D volume of real voxels.
    """
    if not is_ours(path):
        header = read_header(path)
        expect_usable_volume(header, path)
        return load_volume([path], VolumeHeader.of([header])), header
    expect_file(path)
    try:
        with open_content(path) as content:
            file = VolumeFile(path, content)
            return file.read_volume(), file.header
    except VolumeError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, error) from error
