"""Save a subject's volumes on the two grids as NIfTI files with scanner coordinates, to look at in any viewer."""

from pathlib import Path

from nibabel.nifti1 import Nifti1Image

from upfield.common.files import atomic_path
from upfield.imaging.volume import Volume
from upfield.sharding.cohorts.subjects import Subject
from upfield.sharding.phantoms.label_head import LabelHead

HIGH_NAME, LABELS_NAME = "high", "labels"


def volume_names(subject: Subject) -> list[str]:
    """Return the names of the volumes that are made from a subject: `high`, `low`, `low-synthetic-0`, ...

    From a label map, each variant has a head of its own, so there is a high field and a label map per variant.
    """
    lows = [unit.volume_name for unit in subject.units]
    if subject.labels is None:
        return [HIGH_NAME, *lows]
    return [name for low in lows for name in (low, partner_name(low, HIGH_NAME), partner_name(low, LABELS_NAME))]


def partner_name(low_name: str, partner: str) -> str:
    """Return the name of the volume that belongs to one low field: `high-synthetic-0` or `labels-synthetic-0`."""
    return partner + low_name.removeprefix("low")


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


def save_volume(folder: Path | None, subject: Subject, name: str, volume: Volume | LabelHead) -> None:
    """Save one of a subject's volumes, complete or not at all; without a folder, do nothing.

    Args:
        folder: `ShardConfig.save_volumes`.
        subject: the subject that the volume belongs to.
        name: one of `volume_names`.
        volume: voxels `(I, J, K)` float32 before they are scaled, or a head with its labels `(I, J, K)` int16.
    """
    if folder is None:
        return
    image = Nifti1Image(volume.voxels if isinstance(volume, Volume) else volume.labels, volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code="scanner")
    with atomic_path(volume_path(folder, subject, name)) as temporary:
        image.to_filename(temporary)
