"""How large a scan may be: by its header before any voxel is read, and by what it inflates to."""

from math import prod

import numpy as np

from upfield.export.scans.scan import MAX_EXTENT_MM, SPACING_MM
from upfield.export.service.errors import RefusedError
from upfield.imaging.header import Header
from upfield.imaging.volume_file import Readable


def check_size(header: Header, label: str, max_voxels: int) -> None:
    """Refuse a scan with too many voxels, as it is stored or at 1 mm.

    Args:
        header: the scan's, with three dimensions.
        label: how messages name the scan.
        max_voxels: the limit.

    Raises:
        RefusedError: 413.
    """
    if prod(header.shape) > max_voxels:
        raise RefusedError(
            413, f"{label}: expected at most {max_voxels} voxels, found shape {header.shape}. Crop the scan."
        )
    with np.errstate(all="ignore"):
        extent_mm = np.array(header.shape) * header.spacing_mm
    # A scan larger than any head is refused when it is prepared, in the words of the command line.
    if extent_mm.max() <= MAX_EXTENT_MM and prod(extent_mm / SPACING_MM) > max_voxels:
        size_mm = " x ".join(f"{mm:g}" for mm in extent_mm)
        raise RefusedError(
            413, f"{label}: expected at most {max_voxels} voxels at 1 mm, found {size_mm} mm. Crop the scan."
        )


class LimitedContent:
    """A compressed file's content, which may be read up to a limit: a small upload can inflate to a thousandfold."""

    def __init__(self, content: Readable, label: str, max_bytes: int) -> None:
        """Set what to read from, how messages name the scan, and the limit."""
        self._content, self._label, self._max_bytes = content, label, max_bytes
        self._bytes_left = max_bytes

    def read(self, size: int, /) -> bytes:
        """Read `size` bytes, fewer if the content ends.

        Raises:
            RefusedError: 413, the content is longer than the limit.
        """
        # One byte more than allowed shows that there is more, and nothing beyond it is inflated.
        data = self._content.read(min(size, self._bytes_left + 1))
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise RefusedError(
                413,
                f"{self._label}: expected at most {self._max_bytes} bytes without compression, found more. "
                "Crop the scan.",
            )
        return data
