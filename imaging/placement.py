"""The placement of a file's voxels in world space, which an enhanced scan inherits from its source."""

from dataclasses import dataclass

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from upfield.imaging.affine import spacing_of
from upfield.imaging.formats.file_header import SCANNER, Header

UNKNOWN, ALIGNED = 0, 2  # nifti1.h, NIFTI_XFORM_*
SPACES = {UNKNOWN: "unknown", SCANNER: "scanner", ALIGNED: "aligned", 3: "talairach", 4: "mni", 5: "template"}
SAME_SPACING = 0.01


@dataclass(frozen=True)
class Placement:
    """The spaces that a file's header names, and the position of its voxels in each."""

    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm: the affine that readers use, or a default if the header states none."""
    sform_code: int = UNKNOWN
    """Code of the space that the sform maps to; 0 if there is no sform."""
    qform_code: int = UNKNOWN
    """Code of the space that the qform maps to; 0 if there is no qform."""
    qform: NDArray[np.float64] | None = None
    """`(4, 4)`, voxel index -> mm in the qform's space; None if there is no qform."""
    time_unit: int = 0
    """The bits of `xyzt_units` that state the unit of time."""
    descrip: bytes = b""
    """The header's description."""

    @property
    def space(self) -> str:
        """Name of the space that `affine` maps to."""
        code = self.sform_code or self.qform_code
        return SPACES.get(code, str(code))

    @property
    def is_placed(self) -> bool:
        """Whether the file states a position in world space."""
        return self.sform_code > UNKNOWN or self.qform_code > UNKNOWN


def placement_of(header: Header) -> Placement:
    """Return the placement that a file's header states."""
    return Placement(
        affine=header.affine,
        sform_code=header.sform_code,
        qform_code=header.qform_code,
        qform=header.qform,
        time_unit=header.time_unit,
        descrip=header.descrip,
    )


def place(fields: Nifti1Header, affine: NDArray[np.float64], placement: Placement) -> None:
    """Write the position of the voxels into a header, for each space that the source's header names.

    Args:
        fields: header to write to; its shape must be set.
        affine: `(4, 4)`, voxel index -> mm in the space of `placement.affine`.
        placement: placement of the source.
    """
    fields.set_zooms(spacing_of(affine).tolist())
    if placement.qform is not None:
        # The qform is computed through the source's voxels, because sform and qform may map to different spaces.
        qform = placement.qform @ np.linalg.inv(placement.affine) @ affine
        # A qform cannot store shears or a spacing of its own. It is left out if it would need a different spacing.
        if np.allclose(spacing_of(qform), spacing_of(affine), rtol=SAME_SPACING):
            fields.set_qform(qform, code=placement.qform_code)
    if placement.sform_code:
        fields.set_sform(affine, code=placement.sform_code)
    elif not fields["qform_code"] and not np.allclose(fields.get_base_affine(), affine, atol=1e-3):
        # If the source has no position, the new file has none, unless readers would then misplace the new voxels.
        fields.set_sform(affine, code=ALIGNED)
