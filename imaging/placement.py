"""The placement of a file's voxels in world space, which an enhanced scan inherits from its source."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from upfield.imaging.affine import spacing_of
from upfield.imaging.formats.file_header import SCANNER, Header, Spaces, named_spaces

UNKNOWN, ALIGNED = 0, 2  # nifti1.h, NIFTI_XFORM_*
SPACES = {UNKNOWN: "unknown", SCANNER: "scanner", ALIGNED: "aligned", 3: "talairach", 4: "mni", 5: "template"}
SAME_SPACING = 0.01
# If two images share two spaces, the scanner's is the one that no program has computed. Many programs write `aligned`
# for any space, for example nibabel, so it says least.
PREFERENCE = (SCANNER, 4, 3, 5, ALIGNED)


class Placed(Protocol):
    """Anything that has the position of a file: a header or a placement."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """`(4, 4)`, voxel index -> world mm: the affine that readers use."""
        ...

    @property
    def spaces(self) -> Spaces:
        """The spaces that the file names, and the affine to each."""
        ...


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
    def spaces(self) -> Spaces:
        """The spaces that the file names, and the affine to each; empty if the file does not state its position."""
        return named_spaces(self.affine, self.sform_code, self.qform, self.qform_code)

    @property
    def is_placed(self) -> bool:
        """Whether the file states a position in world space."""
        return self.sform_code > UNKNOWN or self.qform_code > UNKNOWN


@dataclass(frozen=True)
class SharedSpace:
    """The space in which two images are brought together."""

    code: int
    """Code of the space that both name; 0 if they name none in common."""
    affines: tuple[NDArray[np.float64], NDArray[np.float64]]
    """`(4, 4)` of each image, voxel index -> mm in this space, or in the most likely space of each."""
    doubt: str | None = None
    """Why nobody can know whether the two are in one place; None if they name a common space."""
    is_apart: bool = False
    """Whether the headers say that the two are in different spaces."""

    @property
    def name(self) -> str:
        """Name of the space."""
        return SPACES[self.code]

    @property
    def note(self) -> str | None:
        """The doubt, and what is assumed if the two are used nevertheless."""
        return self.doubt and f"{self.doubt}; they are assumed to be in the same place"


def share_space(first: Placed, second: Placed, names: tuple[str, str]) -> SharedSpace:
    """Choose the space that two files both name, the scanner's if there are two.

    Only equal codes name one space. `aligned` says too little to prove anything: with another code, the two may or may
    not be in one place, so there is a doubt. Two files that both say `aligned` are taken at their word, because this is
    what most programs write when they save a pair in one space.

    Args:
        first: one file's header or placement.
        second: the other one's.
        names: how the doubt calls the two.
    """
    spaces = dict(first.spaces), dict(second.spaces)
    if shared := [code for code in PREFERENCE if code in spaces[0] and code in spaces[1]]:
        return SharedSpace(shared[0], (spaces[0][shared[0]], spaces[1][shared[0]]))
    affines = _likely_affine(first), _likely_affine(second)
    if nowhere := [name for name, named in zip(names, spaces, strict=True) if not named]:
        doubt = f"the header of {' and of '.join(nowhere)} does not state its position (it names no space)"
        return SharedSpace(UNKNOWN, affines, doubt)
    named = [f"{name} names {_listed(codes)}" for name, codes in zip(names, spaces, strict=True)]
    doubt = f"the headers name different spaces: {named[0]}, and {named[1]}"
    return SharedSpace(UNKNOWN, affines, doubt, not any(ALIGNED in codes for codes in spaces))


def _likely_affine(placed: Placed) -> NDArray[np.float64]:
    return dict(placed.spaces).get(SCANNER, placed.affine)


def _listed(codes: Collection[int]) -> str:
    return " and ".join(f"{SPACES[code]} (code {code})" for code in codes)


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
