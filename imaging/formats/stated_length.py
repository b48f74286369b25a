"""Compute the length of a file from its NIfTI or MGH header, without checking anything else."""

import struct
from math import isfinite, prod

from upfield.imaging.formats.mgh_fields import MGH_VERSION
from upfield.imaging.formats.nifti_fields import is_nifti1, is_nifti2

MGH_HEADER_BYTES = 284
MGH_VOXEL_BYTES = {0: 1, 1: 4, 3: 4, 4: 2, 10: 2}


def stated_length(start: bytes) -> int | None:
    """Return the offset of the last voxel's end that a file's first bytes state, or None if they are no header."""
    try:
        if start.startswith(MGH_VERSION):
            *sizes, code = struct.unpack_from(">5i", start, 4)
            return MGH_HEADER_BYTES + prod(sizes) * MGH_VOXEL_BYTES[code]
        if is_nifti1(start):
            return _end(start, "8h", 40, 72, "f", 108, 352)
        if is_nifti2(start):
            return _end(start, "8q", 16, 14, "q", 168, 544)
    except (struct.error, KeyError):
        pass
    return None


def _end(
    start: bytes, dim: str, dim_at: int, bitpix_at: int, offset: str, offset_at: int, least_offset: int
) -> int | None:
    for order in "<>":
        num_dimensions, *sizes = struct.unpack_from(order + dim, start, dim_at)
        if 1 <= num_dimensions <= 7:
            (bits,) = struct.unpack_from(order + "h", start, bitpix_at)
            (first,) = struct.unpack_from(order + offset, start, offset_at)
            return int(first or least_offset) + prod(sizes[:num_dimensions]) * bits // 8 if isfinite(first) else None
    return None
