"""Read a volume's file in one pass: first the header, then the voxels."""

from io import BytesIO
from pathlib import Path

from upfield.imaging.compressed_files import Readable, is_compressed, read_to_end
from upfield.imaging.header import HEADER_BYTES, UNREADABLE, expect_three_dimensions, parse_header, unreadable
from upfield.imaging.volume import Volume, decode_voxels, to_ras


class VolumeFile:
    """An open NIfTI or MGH file, whose header the caller can check before any voxel is read."""

    def __init__(self, path: Path, content: Readable) -> None:
        """Parse the header.

        Args:
            path: path of the file. Its suffix decides the format, and errors name it.
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
        expect_three_dimensions(self.header, path)

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
                voxels = decode_voxels(BytesIO(self._start + rest), layout)
            else:
                voxels = decode_voxels(path, layout)
        except UNREADABLE as error:
            raise unreadable(path, error) from error
        return to_ras(voxels, self.header.affine, str(path))
