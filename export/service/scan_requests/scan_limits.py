"""Limits on the size of a scan: the voxels that its header declares, and the bytes of its decompressed content."""

from math import prod

import numpy as np

from upfield.export.scans.scan import SPACING_MM
from upfield.export.service.errors import RefusedError
from upfield.imaging.compressed_files import Readable
from upfield.imaging.extent import MAX_SIZE_MM
from upfield.imaging.formats.file_header import Header


def check_size(header: Header, label: str, max_voxels: int) -> None:
    """Refuse a scan that has too many voxels, as stored or after interpolation to 1 mm.

    Args:
        header: the scan's header, with three dimensions.
        label: name of the scan in messages.
        max_voxels: largest number of voxels.

    Raises:
        RefusedError: the scan has too many voxels (413).
    """
    if prod(header.shape) > max_voxels:
        raise RefusedError(
            413, f"{label}: expected at most {max_voxels} voxels, found shape {header.shape}. Crop the scan."
        )
    with np.errstate(all="ignore"):
        extent_mm = np.array(header.shape) * header.spacing_mm
    # prepare_volume refuses a scan that is larger than any head, with the message of the command line.
    if extent_mm.max() <= MAX_SIZE_MM and prod(extent_mm / SPACING_MM) > max_voxels:
        size_mm = " x ".join(f"{mm:g}" for mm in extent_mm)
        raise RefusedError(
            413, f"{label}: expected at most {max_voxels} voxels at 1 mm, found {size_mm} mm. Crop the scan."
        )


class LimitedContent:
    """The content of a compressed file, up to a limit, because a small upload can expand a thousandfold."""

    def __init__(self, content: Readable, label: str, max_bytes: int) -> None:
        """Set the content to read, the name of the scan in messages, and the limit in bytes."""
        self._content, self._label, self._max_bytes = content, label, max_bytes
        self._bytes_left = max_bytes

    def read(self, size: int, /) -> bytes:
        """Read `size` bytes, or fewer at the end of the content.

        Raises:
            RefusedError: the content is longer than the limit (413).
        """
        # One byte beyond the limit shows that the content is too long. The rest is not decompressed.
        data = self._content.read(min(size, self._bytes_left + 1))
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise RefusedError(
                413,
                f"{self._label}: the decompressed content is longer than the limit of {self._max_bytes} bytes. "
                "Crop the scan.",
            )
        return data
