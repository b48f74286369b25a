"""The restored volumes of an evaluation as NIfTI files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.files import atomic_path
from upfield.imaging.nifti_writer import write_volume
from upfield.imaging.volume import Volume

SUFFIX = ".nii.gz"


def save_volume(folder: Path, name: str, voxels: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> None:
    """Write a restored volume to `folder`, in RAS+ order, on the set's grid centred on the origin.

    The set does not hold where the scan lay in the world.

    Args:
        folder: made if it is missing.
        name: of the file, without its suffix.
        voxels: `(X, Y, Z)` in [0, 1].
        spacing_mm: of the voxels.
    """
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(voxels.shape) - 1) / 2
    with atomic_path(folder / f"{name}{SUFFIX}") as temporary:
        write_volume(Volume(voxels, affine), temporary)


def stale_volumes(folder: Path, names: set[str]) -> list[Path]:
    """Return the volumes in `folder` that an earlier evaluation left there.

    Args:
        folder: need not exist.
        names: volumes of this evaluation.
    """
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.name.removesuffix(SUFFIX) not in names)
