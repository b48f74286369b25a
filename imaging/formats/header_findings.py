"""Judge the values of a header: what is doubtful about them, and what is wrong. All stages use these findings."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.affine import angles_deg, size_text, spacing_of
from upfield.imaging.formats.file_header import FIX, Header, HeaderFinding, doubt
from upfield.imaging.formats.nifti_fields import NIFTI_FALLBACK

ENHANCED = b"enhanced by upfield, for research only"
UNITS = {"m": "metres", "um": "micrometres"}
# Limits of voxel sizes. No scan of a living head has smaller voxels, and no usable one has larger voxels.
SPACING_MM = (0.1, 12.0)
MAX_SHEAR_DEG = 1.0
# Forms that name one space are rounded differently by less than this.
SAME_FORMS_DEG, SAME_FORMS_MM = 1.0, 1.0
# A head may be tilted against the axes of a template, but by less than this. Exchanged axes differ by more.
MAX_FORMS_DIFFER_DEG = 45.0


def header_findings(header: Header, axes: Iterable[int] = range(3)) -> list[HeaderFinding]:
    """Judge all that a header says except its affine.

    Args:
        header: header of a volume or a slice.
        axes: the axes along which the header must state the voxel size.
    """
    findings: list[HeaderFinding] = []
    if not header.is_oriented:
        message = "the header does not say which side is left (no qform or sform code, or their equivalent)"
        consequence = f"{NIFTI_FALLBACK}, or the default of its format, is assumed, and left and right may be exchanged"
        remedy = f"{FIX[:-1]}, or set `orientation` of the cohort to the axis codes of its files, for example `RAS`."
        findings.append(HeaderFinding("side", message, consequence, remedy))
    findings += _forms(header)
    if header.unit != "mm":
        message = f"expected lengths in mm, found {UNITS[header.unit]} in the header"
        findings.append(HeaderFinding("spacing", message, "they are treated as mm", FIX))
    if not all(header.has_spacing[axis] for axis in axes):
        message = "the header states no voxel size, or 0, along an axis"
        findings.append(HeaderFinding("spacing", message, "", FIX, is_unusable=True))
    if is_enhanced(header):
        message = "its description says that it has been enhanced already"
        consequence = "models are not trained on such scans"
        findings.append(doubt(message, consequence, "Use the original scan."))
    return [*findings, *header.doubts]


def is_enhanced(header: Header) -> bool:
    """Return whether a header says that the scan has been enhanced."""
    return header.descrip.startswith(ENHANCED)


def _forms(header: Header) -> list[HeaderFinding]:
    """Compare sform and qform."""
    differ_deg, apart_mm = header.forms_differ_deg, header.forms_apart_mm
    taken, remedy = "the sform is used", "Keep only the correct one."
    if not differ_deg <= MAX_FORMS_DIFFER_DEG:  # NaN too
        differ = (
            "the qform is not a rotation"
            if np.isnan(differ_deg)
            else f"their axes differ by up to {differ_deg:.0f} degrees"
        )
        message = f"qform and sform disagree about where the axes point: {differ}"
        return [HeaderFinding("side", message, taken, remedy)]
    same_space = header.sform_code == header.qform_code
    if same_space and (differ_deg > SAME_FORMS_DEG or apart_mm > SAME_FORMS_MM):
        differ = f"{differ_deg:.0f} degrees and {apart_mm:.0f} mm"
        message = f"sform and qform differ by up to {differ}, though both name one space"
        return [doubt(message, taken, remedy)]
    return []


def affine_findings(affine: NDArray[np.float64]) -> list[HeaderFinding]:
    """Judge the affine `(4, 4)` of a volume."""
    columns = affine[:3, :3]
    spacing_mm = spacing_of(columns)
    usable = bool(np.isfinite(affine).all() and spacing_mm.all())
    # The determinant of the unit axes shows how far they are from lying in one plane, independent of the spacing.
    if not usable or abs(np.linalg.det(columns / spacing_mm)) < 1e-3:
        rows = np.round(affine[:3], 4).tolist()
        message = f"the affine does not have three distinct axes: {rows}"
        return [HeaderFinding("affine", message, "", FIX, is_unusable=True)]
    findings: list[HeaderFinding] = []
    pairs = list(combinations(range(3), 2))
    between_deg = angles_deg(columns[:, [first for first, _ in pairs]], columns[:, [second for _, second in pairs]])
    worst = int(np.argmax(np.abs(between_deg - 90)))
    if abs(between_deg[worst] - 90) > MAX_SHEAR_DEG:
        first, second = pairs[worst]
        message = f"axes {first} and {second} meet at {between_deg[worst]:.1f} degrees instead of 90 (sheared)"
        remedy = "Resample the volume to perpendicular axes or fix the header."
        findings.append(HeaderFinding("affine", message, "the result is sheared too", remedy))
    if spacing_mm.min() < SPACING_MM[0] or spacing_mm.max() > SPACING_MM[1]:
        message = f"expected voxels of {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm, found {size_text(spacing_mm)}"
        findings.append(HeaderFinding("spacing", message, "the stated sizes are used", FIX))
    return findings
