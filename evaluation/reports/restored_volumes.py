"""The restored volumes of an evaluation as NIfTI files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.files import atomic_path
from upfield.imaging.nifti_writer import write_volume
from upfield.imaging.volume import Volume

SUFFIX = ".nii.gz"


def save_volume(folder: Path, name: str, voxels: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> None:
    """Write a restored volume to `folder`, in RAS+ order, on the grid of the shard set.

    The grid is centred on the origin, because a shard set does not store the position of the scan in world coordinates.

    Args:
        folder: created if it does not exist.
        name: file name without suffix.
        voxels: `(X, Y, Z)` in [0, 1].
        spacing_mm: voxel spacing.
    """
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(voxels.shape) - 1) / 2
    with atomic_path(folder / f"{name}{SUFFIX}") as temporary:
        write_volume(Volume(voxels, affine), temporary)


def stale_volumes(folder: Path, names: set[str]) -> list[Path]:
    """Find the volumes in `folder` that an earlier evaluation wrote.

    Args:
        folder: folder to search, which may be missing.
        names: names of the volumes of this evaluation.
    """
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.name.removesuffix(SUFFIX) not in names)
