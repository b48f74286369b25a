"""Volumes on the two grids as NIfTI files, where they were in the scanner: to look at in any viewer."""

from dataclasses import dataclass
from pathlib import Path

from nibabel.nifti1 import Nifti1Image

from upfield.common.files import atomic_path
from upfield.imaging.volume import Volume
from upfield.sharding.building.pairs import HIGH_NAME, Save, make_pairs
from upfield.sharding.cohorts.subjects import Subject
from upfield.sharding.configuration import ShardConfig


def volume_names(subject: Subject) -> list[str]:
    """Give the names of the volumes that are made of a subject: `high`, `low`, `low-synthetic-0`, ..."""
    return [HIGH_NAME, *(unit.volume_name for unit in subject.units)]


def volume_path(folder: Path, subject: Subject, name: str) -> Path:
    """Give the file of one of a subject's volumes."""
    return folder / subject.cohort / f"{subject.key_part}_{name}.nii.gz"


def are_missing(folder: Path, subject: Subject) -> bool:
    """Tell whether a file of a subject is not there."""
    return not all(volume_path(folder, subject, name).is_file() for name in volume_names(subject))


def discard(folder: Path | None, subject: Subject) -> None:
    """Remove what was written of a subject that turns out to be unusable."""
    if folder is not None:
        for name in volume_names(subject):
            volume_path(folder, subject, name).unlink(missing_ok=True)


def saver(folder: Path | None, subject: Subject) -> Save | None:
    """Give a function that writes a subject's volumes to files, each complete or not at all; None without a folder."""
    if folder is None:
        return None

    def save(name: str, volume: Volume) -> None:
        image = Nifti1Image(volume.voxels, volume.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(volume.affine, code="scanner")
        with atomic_path(volume_path(folder, subject, name)) as temporary:
            image.to_filename(temporary)

    return save


@dataclass(frozen=True)
class VolumeTask:
    """A subject whose volumes are to be written."""

    subject: Subject
    """Whose."""
    config: ShardConfig
    """The build's configuration, with the folder."""


def save_volumes(task: VolumeTask) -> None:
    """Write the volumes of one subject whose shards are built already; runs in a worker."""
    for _ in make_pairs(task.subject, task.config, saver(task.config.save_volumes, task.subject)):
        pass
