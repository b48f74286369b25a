"""Read the fields of an MGH header, as FreeSurfer and nibabel do. The footer behind the voxels is not needed."""

from typing import Any

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage
from nibabel.spatialimages import HeaderDataError

from upfield.imaging.affine import assumed_affine, spacing_of
from upfield.imaging.formats.file_header import (
    FIX,
    SCANNER,
    Header,
    HeaderFinding,
    VoxelLayout,
    doubt,
    without_trailing_ones,
)

MGH_VERSION = b"\0\0\0\1"
MGH_FALLBACK = "LIA"  # FreeSurfer's choice for files that do not state the directions of their axes


def parse_mgh(start: bytes, orientation: str | None) -> Header:
    """Parse an MGH header, whose only space is that of the scanner.

    Args:
        start: the header's bytes.
        orientation: axis codes to assume if the header does not state the directions of the axes.

    Raises:
        HeaderDataError, ValueError, KeyError: the header is damaged.
    """
    # If the flag that marks the geometry as valid is 0, nibabel overwrites the flag and the spacing. Both are therefore
    # read from the bytes, at offsets 28 and 30.
    is_good = int.from_bytes(start[28:30], "big", signed=True) > 0
    stated_mm = np.frombuffer(start, ">f4", 3, offset=30).astype(np.float64)
    fields: Any = MGHHeader(start[: MGHHeader.template_dtype.itemsize])
    if int(fields["dims"][3]) < 1:
        raise HeaderDataError(f"expected 1 or more frames, found {int(fields['dims'][3])}")
    first, second, third, frames = (int(size) for size in fields["dims"])
    shape = without_trailing_ones((first, second, third, frames))
    has_spacing = bool(np.isfinite(stated_mm).all() and (stated_mm > 0).all())
    doubts: list[HeaderFinding] = []
    if is_good:
        affine = np.asarray(fields.get_affine(), dtype=np.float64)
        if has_spacing and (np.abs(spacing_of(affine) - stated_mm) > 0.02 * stated_mm).any():
            message = "the directions of the axes do not have length 1, which changes the voxel sizes"
            doubts.append(doubt(message, "the product of both is used", FIX))
    else:
        affine = assumed_affine(shape, stated_mm if has_spacing else np.ones(3), orientation or MGH_FALLBACK)
    return Header(
        layout=VoxelLayout(MGHImage, shape, fields.get_data_dtype(), fields.get_data_offset()),
        affine=affine,
        is_oriented=is_good or orientation is not None,
        is_placed=is_good,
        has_spacing=(has_spacing, has_spacing, has_spacing),
        doubts=tuple(doubts),
        **scanner_space(affine, is_good),
    )


def scanner_space(affine: Any, is_placed: bool) -> dict[str, Any]:
    """Return the fields of `Header` that describe the spaces, for a format whose only space is the scanner's."""
    return {"sform_code": SCANNER, "qform_code": SCANNER, "qform": affine} if is_placed else {}
