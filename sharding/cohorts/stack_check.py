"""Find the slice files of a stack whose headers do not fit those of the others. The majority decides what is usual."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.affine import angles_deg, size_text, spacing_of
from upfield.imaging.formats.file_header import Header
from upfield.imaging.volume_header import UNPLACED_MM, plane_shape

# Rounding in headers changes axes and voxel sizes by less than this between slices.
MAX_TURN_DEG, MAX_CHANGE = 1.0, 0.01
# Headers round positions to 0.01 mm at worst. The second limit is a share of the step between slices.
MAX_OFF_MM, MAX_OFF = 0.02, 0.05
# At most this share of the slices is called foreign. If more differ, the whole stack is in question.
MAX_FOREIGN = 0.1
# Shorter stacks do not show what is usual.
MIN_SLICES = 8


def unlike_the_rest(headers: Sequence[Header], axes: Sequence[int]) -> list[tuple[int, str]]:
    """Find slices whose shape, axes or voxel sizes differ from those of most slices.

    Args:
        headers: headers of the slices, in order.
        axes: the axis across which each slice lies.

    Returns:
        The number of each such slice, ascending, and the problem without a full stop.
    """
    keys = [_geometry(header, axis) for header, axis in zip(headers, axes, strict=True)]
    usual = keys.index(_most_common(keys))
    differences: list[tuple[int, str]] = []
    plane, columns = plane_shape(headers[usual], axes[usual]), headers[usual].affine[:3, :3]
    for number, (header, axis) in enumerate(zip(headers, axes, strict=True)):
        if (own := plane_shape(header, axis)) != plane:
            message = f"expected a slice of shape {plane} like most of its stack, found {own}"
        elif axis != axes[usual]:
            message = f"expected a slice across axis {axes[usual]} like most of its stack, found one across axis {axis}"
        else:
            message = _difference(header, columns)
        if message:
            differences.append((number, message))
    return differences


def _geometry(header: Header, axis: int) -> Hashable:
    affine = np.nan_to_num(header.affine[:3, :3], posinf=0, neginf=0)
    return plane_shape(header, axis), axis, tuple(np.round(affine, 1).ravel().tolist())


def _most_common(keys: Sequence[Hashable]) -> Hashable:
    return Counter(keys).most_common(1)[0][0]


def _difference(header: Header, columns: NDArray[np.float64]) -> str | None:
    if np.array_equal(header.affine[:3, :3], columns):
        return None
    turn_deg = angles_deg(columns, header.affine[:3, :3])
    if (turn_deg > MAX_TURN_DEG).any():
        return f"one of its axes is rotated by {turn_deg.max():.1f} degrees from that of most slices"
    spacing_mm = spacing_of(columns)
    if (np.abs(header.spacing_mm - spacing_mm) > MAX_CHANGE * spacing_mm).any():
        return f"expected voxels of {size_text(spacing_mm)} as in most slices, found {size_text(header.spacing_mm)}"
    return None


def uneven_steps(headers: Sequence[Header]) -> tuple[int, str] | None:
    """Find slices that do not lie on the line of the others, or else the first uneven step between slices.

    Returns:
        The number of the first such slice, and the problem with its remedy; None if the steps are even, or if the
        headers do not state the positions of the slices.
    """
    origins_mm = np.array([header.affine[:3, 3] for header in headers])
    travelled_mm = np.linalg.norm(origins_mm - origins_mm[0], axis=1)
    if not np.isfinite(travelled_mm).all() or travelled_mm.max() <= UNPLACED_MM:
        return None
    usual_mm = usual_step_mm(headers)
    limit_mm = max(MAX_OFF_MM, MAX_OFF * float(np.linalg.norm(usual_mm)))
    off_mm = np.linalg.norm(np.diff(origins_mm, axis=0) - usual_mm, axis=1)
    wrong = off_mm > limit_mm
    if not wrong.any():
        return None
    from_line_mm = origins_mm - np.arange(len(headers))[:, None] * usual_mm
    away_mm = np.linalg.norm(from_line_mm - np.median(from_line_mm, axis=0), axis=1)
    foreign = np.flatnonzero(away_mm > limit_mm)
    if 1 <= len(foreign) <= max(MAX_FOREIGN * len(headers), 1):
        message = (
            f"{len(foreign)} of {len(headers)} slices do not lie in line with the others: slice {foreign[0]} (counted "
            f"from 0) is {away_mm[foreign[0]]:.2f} mm away from its place. Check the order of the slices, and whether "
            "one belongs to another scan."
        )
        return int(foreign[0]), message
    first = int(np.argmax(wrong))
    message = (
        f"the slices are not evenly spaced: the usual step is {np.linalg.norm(usual_mm):.2f} mm, but "
        f"{int(wrong.sum())} of {len(wrong)} steps differ, the first by {off_mm[first]:.2f} mm between slices "
        f"{first} and {first + 1} (counted from 0). Check the order of the slices, and whether one is missing."
    )
    return first + 1, message


def usual_step_mm(headers: Sequence[Header]) -> NDArray[np.float64]:
    """Return the median step from slice to slice, `(3,)` in mm."""
    return np.median(np.diff([header.affine[:3, 3] for header in headers], axis=0), axis=0)


def unusual_statements(headers: Sequence[Header]) -> Iterator[tuple[int, str]]:
    """Find few slices whose headers state other things about the voxels than all the others do.

    Yields:
        The number of the first such slice, and a doubt about all of them.
    """
    statements: dict[str, list[Hashable]] = {
        "data type": [header.layout.dtype.str for header in headers],
        "scaling": [(header.layout.slope, header.layout.intercept) for header in headers],
        "form codes": [(header.sform_code, header.qform_code) for header in headers],
        "description": [header.descrip for header in headers],
    }
    for name, values in statements.items():
        usual = _most_common(values)
        others = [number for number, value in enumerate(values) if value != usual]
        if len(headers) >= MIN_SLICES and 1 <= len(others) <= MAX_FOREIGN * len(headers):
            yield (
                others[0],
                f"the headers of {len(others)} of {len(headers)} slices state another {name} than all others (slice "
                f"{others[0]} is the first, counted from 0). Check that these slices are not from another scan.",
            )
