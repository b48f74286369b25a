"""The placement of a file's voxels in world space, which an enhanced scan takes over from its source."""

from dataclasses import dataclass

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from upfield.imaging.header import SCANNER, Header, spacing_of

UNKNOWN, ALIGNED = 0, 2  # nifti1.h, NIFTI_XFORM_*
SPACES = {UNKNOWN: "unknown", SCANNER: "scanner", ALIGNED: "aligned", 3: "talairach", 4: "mni", 5: "template"}
SAME_SPACING = 0.01


@dataclass(frozen=True)
class Placement:
    """The spaces that a file's header names, and the position of its voxels in each."""

    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm: the affine that readers use, which is a default if the header has none."""
    sform_code: int = UNKNOWN
    """Code of the space that the sform leads to; 0 without an sform."""
    qform_code: int = UNKNOWN
    """Code of the space that the qform leads to; 0 without a qform."""
    qform: NDArray[np.float64] | None = None
    """`(4, 4)`, voxel index -> mm in the qform's space, if there is a qform."""
    time_unit: int = 0
    """The bits of `xyzt_units` that state the unit of time."""
    descrip: bytes = b""
    """The header's description."""

    @property
    def space(self) -> str:
        """Name of the space that `affine` leads to."""
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
        affine: `(4, 4)`, voxel index -> the world that `placement.affine` leads to.
        placement: placement of the source.
    """
    fields.set_zooms(spacing_of(affine).tolist())
    if placement.qform is not None:
        # Through the source's voxels, because sform and qform may lead to different spaces.
        qform = placement.qform @ np.linalg.inv(placement.affine) @ affine
        # A qform cannot hold shears or a spacing of its own, so it is left out if it would need them.
        if np.allclose(spacing_of(qform), spacing_of(affine), rtol=SAME_SPACING):
            fields.set_qform(qform, code=placement.qform_code)
    if placement.sform_code:
        fields.set_sform(affine, code=placement.sform_code)
    elif not fields["qform_code"] and not np.allclose(fields.get_base_affine(), affine, atol=1e-3):
        # A source without a position stays without one, unless readers would then misplace the new voxels.
        fields.set_sform(affine, code=ALIGNED)
