"""Render one phantom subject from a label map and write its files."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.phantoms.configuration import HeadsConfig
from upfield.sharding.phantoms.label_head import draw_head, high_field, low_field
from upfield.sharding.phantoms.label_map import LabelMap, read_label_map
from upfield.sharding.phantoms.subject_writer import ixi_name, real_name, write_ixi, write_slices, write_volume
from upfield.sharding.physics.configuration import PhysicsConfig

# Value, in scanner units, of a low-field signal of 1.
LOW_UNITS = (1000.0, 4000.0)


@dataclass(frozen=True)
class MapTask:
    """One subject to render and write."""

    folder: Path
    """Folder in which `real`, `IXI-T1` and `labels` are made."""
    seed: int
    """Seed of the cohort."""
    number: int
    """Number of the subject within the cohort, from 0; with the seed, it determines everything that is drawn."""
    num_pairs: int
    """Subjects below this number become real pairs, the others IXI-like volumes."""
    path: Path
    """Label map."""
    labels_as: tuple[tuple[int, int | str], ...] = ()
    """Meaning of numbers in the map that are not known."""
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    """The two grids."""


def write_map_subject(task: MapTask) -> None:
    """Render one subject and write its files: its labels, and slices of both fields or one IXI-like volume.

    Raises:
        VolumeError: the file is unreadable or does not hold a label map of a head.
        InputError: `labels_as` names something that is not known.
    """
    rng = np.random.default_rng([task.seed, task.number])
    # A brain alone beside a whole head of low field would not be a pair.
    heads = HeadsConfig(stripped_rate=0)
    head = draw_head(_read(task.path, task.labels_as), task.geometry, heads, rng)
    high, _ = high_field(head, heads, rng)
    is_pair = task.number < task.num_pairs
    name = real_name(task.number) if is_pair else ixi_name(task.number - task.num_pairs)
    write_volume(task.folder / "labels" / f"{name.partition('-PH-')[0]}.nii.gz", head.labels, head.affine)
    if not is_pair:
        write_ixi(task.folder / "IXI-T1" / f"{name}.nii.gz", high.voxels, high.affine)
        return
    low, _ = low_field(head, PhysicsConfig(), rng, task.geometry)
    write_slices(task.folder / "real" / "low", name, low.voxels * np.float32(rng.uniform(*LOW_UNITS)), low.affine)
    write_slices(task.folder / "real" / "high", name, high.voxels, high.affine)


@functools.lru_cache(maxsize=1)
def _read(path: Path, labels_as: tuple[tuple[int, int | str], ...]) -> LabelMap:
    return read_label_map(path, dict(labels_as))
