"""Where a file says that its voxels lie: what of a scan's header is carried over to the enhanced one's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from upfield.imaging.compressed_files import open_content
from upfield.imaging.header import HEADER_BYTES, Header, spacing_of

UNKNOWN, SCANNER, ALIGNED = 0, 1, 2  # nifti1.h, NIFTI_XFORM_*
SPACES = {UNKNOWN: "unknown", SCANNER: "scanner", ALIGNED: "aligned", 3: "talairach", 4: "mni", 5: "template"}
TIME_UNIT_BITS = 0b111000
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


def read_placement(path: Path, header: Header) -> Placement:
    """Read where a file's voxels lie.

    Args:
        path: the file.
        header: what `read_header` gives for it.
    """
    if not issubclass(header.kind.header_class, Nifti1Header):
        code = SCANNER if header.is_placed else UNKNOWN
        return Placement(header.affine, code, code, header.affine if header.is_placed else None)
    with open_content(path) as file:
        start = file.read(HEADER_BYTES)
    kind = header.kind.header_class
    fields = kind(start[: kind.template_dtype.itemsize], check=False)
    sform_code, qform_code = max(int(fields["sform_code"]), 0), max(int(fields["qform_code"]), 0)
    qform = _qform(fields) if qform_code else None
    return Placement(
        affine=header.affine,
        sform_code=sform_code,
        qform_code=qform_code if qform is not None else UNKNOWN,
        qform=qform,
        time_unit=int(fields["xyzt_units"]) & TIME_UNIT_BITS,
        descrip=bytes(fields["descrip"]).rstrip(b"\0 "),
    )


def _qform(fields: Nifti1Header) -> NDArray[np.float64] | None:
    try:
        qform = np.asarray(fields.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
    return qform if np.isfinite(qform).all() and abs(np.linalg.det(qform[:3, :3])) > 0 else None


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
