"""Recognise scans from which everything but the brain has been removed."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.imaging.head_mask import connected_parts
from upfield.imaging.volume import Volume

MOST_VOXELS = 80
# Outside a brain that was cut out, all voxels have one value: 0.995 or more of them in four brains. In scans of whole
# heads, this share was at most 0.78, also if the scanner or an anonymisation had blackened a part of the air.
LEAST_CONSTANT, LEAST_CONSTANT_DARK = 0.98, 0.85
# Whole heads of adults had 2.6 litres or more, brains at most 1.6.
MAX_LITRES = 2.2
# Share of dark voxels, such as bone, in a shell below the surface: 0.004 to 0.12 in brains, 0.11 to 0.29 in scans of
# heads. It protects small heads whose air is black.
MAX_DARK = 0.2
SHELL = (0.08, 0.28)


def is_skull_stripped(volume: Volume) -> bool:
    """Return whether a volume seems to show a brain without skull and skin.

    All three must hold: almost all voxels outside the object have exactly the same value, the object is not larger than
    a brain, and there is no dark shell below its surface.

    Args:
        volume: `(I, J, K)` in any orientation.
    """
    step = np.maximum(np.round(np.array(volume.voxels.shape) / MOST_VOXELS).astype(int), 1)
    voxels = volume.voxels[:: step[0], :: step[1], :: step[2]]
    spacing_mm = volume.spacing_mm * step
    background = np.median(np.concatenate([np.take(voxels, (0, -1), axis).ravel() for axis in range(3)]))
    away = np.abs(voxels - background)
    if not (varied := away[away > 0]).size:
        return False
    bright = float(np.percentile(varied, 95))
    constant, dark = away <= 1e-3 * bright, away <= 0.2 * bright
    # Ordinary scans end here, before the slow steps. Dark voxels include some of the brain's own.
    if constant.sum() < LEAST_CONSTANT_DARK * dark.sum():
        return False
    head = _object(~dark)
    outside = np.logical_not(ndimage.binary_dilation(head))
    if not head.any() or not outside.any() or constant[outside].mean() < LEAST_CONSTANT:
        return False
    if head.sum() * spacing_mm.prod() / 1e6 > MAX_LITRES:
        return False
    padded = np.asarray(ndimage.distance_transform_edt(np.pad(head, 1), sampling=spacing_mm))
    depth = padded[1:-1, 1:-1, 1:-1] / padded.max()
    shell = away[(depth > SHELL[0]) & (depth <= SHELL[1])]
    return bool(shell.size and (shell < 0.35 * np.median(away[depth > 0.5])).mean() < MAX_DARK)


def _object(bright: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part of a mask `(I, J, K)` without specks, its holes filled in all sections."""
    parts, sizes = connected_parts(np.asarray(ndimage.binary_opening(bright), dtype=np.bool_))
    if sizes.size < 2:
        return np.zeros(bright.shape, dtype=np.bool_)
    filled = parts == sizes.argmax()
    for axis in range(3):
        sections = [np.asarray(ndimage.binary_fill_holes(section)) for section in np.moveaxis(filled, axis, 0)]
        filled = np.moveaxis(np.stack(sections), 0, axis)
    return filled


def stripped_doubt(volume: Volume, trained_on_stripped: bool | None) -> str | None:
    """Return a doubt if a scan and the scans that a model was trained on differ in showing the skull, otherwise None.

    Args:
        volume: the scan, `(I, J, K)`.
        trained_on_stripped: whether the model was trained on skull-stripped scans; None if this is not known.
    """
    if not is_skull_stripped(volume):
        whole = "the scan shows more than a brain, but the model was trained on brains without skull; remove the skull"
        return whole if trained_on_stripped else None
    if trained_on_stripped:
        return None
    model = "was trained on whole heads" if trained_on_stripped is False else "may have been trained on whole heads"
    return f"the scan shows a brain without skull, but the model {model}; enhance the original scan with its skull"
