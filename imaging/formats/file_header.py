"""The header of one file, as all stages use it, and the findings about its values."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from upfield.imaging.affine import spacing_of

HEADER_BYTES = 540  # NIfTI-2 has the longest header.
SCANNER = 1  # nifti1.h, NIFTI_XFORM_SCANNER_ANAT
# The check of findings that a correct scan may have. Training refuses scans with any other finding.
VALUE_DOUBT = "values"
# The usual remedy.
FIX = "Fix the header."

Spaces = tuple[tuple[int, NDArray[np.float64]], ...]
"""Code of each space that a header names (nifti1.h, NIFTI_XFORM_*), and the affine `(4, 4)` to it; the sform first."""


@dataclass(frozen=True)
class VoxelLayout:
    """The part of a header that is needed to read the voxels. The slices of a stack usually share one layout."""

    kind: type[SpatialImage]
    """nibabel's class for the format."""
    shape: tuple[int, ...]
    """Voxels per dimension; trailing dimensions of size 1 beyond the third are dropped."""
    dtype: np.dtype[Any]
    """Data type of the stored voxels, which must be real."""
    offset_bytes: int | None = None
    """Offset of the first voxel in the uncompressed file; None for formats that only nibabel reads."""
    slope: float = 1.0
    """Factor by which stored values are multiplied."""
    intercept: float = 0.0
    """Value that is added after the multiplication."""
    voxel_file: Path | None = None
    """The other file that holds the voxels; None if they follow the header."""

    @property
    def end_bytes(self) -> int | None:
        """Offset of the voxels' end in the uncompressed file; None for formats that keep voxels in another file."""
        if self.offset_bytes is None or self.voxel_file is not None:
            return None
        return self.offset_bytes + prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class HeaderFinding:
    """A doubtful or wrong value in a header."""

    check: str
    """The check that failed, as in `Problem`: `side`, `spacing`, `affine` or `values`."""
    message: str
    """What the header says, in lower case and without a full stop."""
    consequence: str
    """What is made of it if the scan is used, in the same form."""
    remedy: str
    """What the user can do: a sentence."""
    is_unusable: bool = False
    """Whether no program can do anything useful with the scan."""

    @property
    def is_doubt(self) -> bool:
        """Whether a correct scan may have this value, so that the scan may be used for training."""
        return self.check == VALUE_DOUBT

    @property
    def note(self) -> str:
        """The message for a scan that is used."""
        return f"{self.message}; {self.consequence}" if self.consequence else self.message

    @property
    def refusal(self) -> str:
        """The message for a scan that is not used."""
        return f"{self.message}. {self.remedy}"


def doubt(message: str, consequence: str, remedy: str) -> HeaderFinding:
    """Return a finding that a correct scan may have."""
    return HeaderFinding(VALUE_DOUBT, message, consequence, remedy)


@dataclass(frozen=True)
class Header:
    """The header of one volume or slice file."""

    layout: VoxelLayout
    """How the file stores its voxels."""
    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm; it may not be invertible or finite."""
    is_oriented: bool
    """Whether the file or the caller states the directions of the axes."""
    is_placed: bool
    """Whether the file states the position of its voxels in the scanner."""
    has_spacing: tuple[bool, bool, bool]
    """Whether the file states the voxel size along each axis. If not, 1 mm is assumed."""
    forms_differ_deg: float = 0.0
    """Largest angle between the axes of sform and qform: 0 unless both are set, NaN if the qform is not a rotation."""
    forms_apart_mm: float = 0.0
    """Largest distance between the places that sform and qform give to a corner of the volume: 0 unless both are set
    and name one space."""
    unit: Literal["m", "mm", "um"] = "mm"
    """Unit of length in the file; `mm` if the file does not state one."""
    sform_code: int = 0
    """Code of the space that the sform maps to (nifti1.h, NIFTI_XFORM_*); 0 if there is no sform."""
    qform_code: int = 0
    """Code of the space that the qform maps to; 0 if there is no usable qform."""
    qform: NDArray[np.float64] | None = None
    """`(4, 4)`, voxel index -> mm in the qform's space; None if there is no usable qform."""
    time_unit: int = 0
    """The bits of `xyzt_units` that state the unit of time."""
    descrip: bytes = b""
    """The header's description, without padding."""
    doubts: tuple[HeaderFinding, ...] = ()
    """Findings about fields that are not kept in this record."""

    @property
    def kind(self) -> type[SpatialImage]:
        """nibabel's class for the format."""
        return self.layout.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per dimension; trailing dimensions of size 1 beyond the third are dropped."""
        return self.layout.shape

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis, `(3,)`, in mm."""
        return spacing_of(self.affine)

    @property
    def spaces(self) -> Spaces:
        """The spaces that the file names, and the affine to each; empty if the file does not state its position."""
        return named_spaces(self.affine, self.sform_code, self.qform, self.qform_code)


def named_spaces(
    affine: NDArray[np.float64], sform_code: int, qform: NDArray[np.float64] | None, qform_code: int
) -> Spaces:
    """Return the spaces that a header names. A qform in the sform's own space is left out, because the sform counts.

    Args:
        affine: `(4, 4)` of the sform if `sform_code` is set.
        sform_code: code of the space that the sform maps to, or 0.
        qform: `(4, 4)`, or None if there is no usable qform.
        qform_code: code of the space that the qform maps to, or 0.
    """
    spaces = [(sform_code, affine)] if sform_code else []
    if qform is not None and qform_code and qform_code != sform_code:
        spaces.append((qform_code, qform))
    return tuple(spaces)


def without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without dimensions of size 1 beyond the third."""
    sizes = list(shape)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)
