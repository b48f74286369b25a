"""Where a file says that its voxels lie: what of a scan's header is carried over to the enhanced one's."""

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
    """The spaces that a file's header names, and where its voxels lie in them."""

    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm: the one that counts, or what is assumed where none is stated."""
    sform_code: int = UNKNOWN
    """Space that the sform leads to; 0 where there is none."""
    qform_code: int = UNKNOWN
    """The same of the qform."""
    qform: NDArray[np.float64] | None = None
    """`(4, 4)`, voxel index -> mm in the qform's space, if there is one."""
    time_unit: int = 0
    """The bits of `xyzt_units` that are about time."""
    descrip: bytes = b""
    """The header's description."""

    @property
    def space(self) -> str:
        """What the space of `affine` is called."""
        code = self.sform_code or self.qform_code
        return SPACES.get(code, str(code))

    @property
    def is_placed(self) -> bool:
        """Tell whether the file says where it lies."""
        return self.sform_code > UNKNOWN or self.qform_code > UNKNOWN


def placement_of(header: Header) -> Placement:
    """Return where a file's header says that its voxels lie."""
    return Placement(
        affine=header.affine,
        sform_code=header.sform_code,
        qform_code=header.qform_code,
        qform=header.qform,
        time_unit=header.time_unit,
        descrip=header.descrip,
    )


def place(fields: Nifti1Header, affine: NDArray[np.float64], placement: Placement) -> None:
    """Write into a header where its voxels lie: the same place in each space that a source's header names.

    Args:
        fields: with its shape set.
        affine: `(4, 4)`, voxel index -> the world that `placement.affine` leads to.
        placement: the source's.
    """
    fields.set_zooms(spacing_of(affine).tolist())
    if placement.qform is not None:
        # By way of the source's voxels, as sform and qform may lead to different spaces.
        qform = placement.qform @ np.linalg.inv(placement.affine) @ affine
        # A qform has neither shears nor spacings of its own, and is left out where it would need them.
        if np.allclose(spacing_of(qform), spacing_of(affine), rtol=SAME_SPACING):
            fields.set_qform(qform, code=placement.qform_code)
    if placement.sform_code:
        fields.set_sform(affine, code=placement.sform_code)
    elif not fields["qform_code"] and not np.allclose(fields.get_base_affine(), affine, atol=1e-3):
        # Who states no place gets what readers assume, unless they would assume another one for the new voxels.
        fields.set_sform(affine, code=ALIGNED)
