"""Save a subject's volumes on the two grids as NIfTI files with scanner coordinates, to look at in any viewer."""

from pathlib import Path

from nibabel.nifti1 import Nifti1Image

from upfield.common.files import atomic_path
from upfield.imaging.volume import Volume
from upfield.sharding.cohorts.subjects import Subject

HIGH_NAME = "high"


def volume_names(subject: Subject) -> list[str]:
    """Return the names of the volumes that are made from a subject: `high`, `low`, `low-synthetic-0`, ..."""
    return [HIGH_NAME, *(unit.volume_name for unit in subject.units)]


def volume_path(folder: Path, subject: Subject, name: str) -> Path:
    """Return the path to which one of a subject's volumes is saved."""
    return folder / subject.cohort / f"{subject.key_part}_{name}.nii.gz"


def are_missing(folder: Path, subject: Subject) -> bool:
    """Return whether any of a subject's volumes has not been saved."""
    return not all(volume_path(folder, subject, name).is_file() for name in volume_names(subject))


def discard(folder: Path | None, subject: Subject) -> None:
    """Remove the saved volumes of a subject that turns out to be unusable; without a folder, do nothing."""
    if folder is not None:
        for name in volume_names(subject):
            volume_path(folder, subject, name).unlink(missing_ok=True)


def save_volume(folder: Path | None, subject: Subject, name: str, volume: Volume) -> None:
    """Save one of a subject's volumes, complete or not at all; without a folder, do nothing.

    Args:
        folder: `ShardConfig.save_volumes`.
        subject: the subject that the volume belongs to.
        name: one of `volume_names`.
        volume: voxels `(I, J, K)` float32 on one of the two grids, before they are scaled.
    """
    if folder is None:
        return
    image = Nifti1Image(volume.voxels, volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code="scanner")
    with atomic_path(volume_path(folder, subject, name)) as temporary:
        image.to_filename(temporary)
