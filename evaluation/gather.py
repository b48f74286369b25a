"""Share the volumes of a split out over the processes of a job, and bring their figures together."""

import os
from datetime import timedelta
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from upfield.evaluation.measure import MODEL, Measuring, VolumeFigures, VolumeImages, measure
from upfield.export.scan import write_volume
from upfield.sharding.atomic import atomic_path
from upfield.sharding.progress import track
from upfield.sharding.selection import VolumePair
from upfield.sharding.shardset import ShardSplit
from upfield.sharding.volume import Volume

# Processes wait for the one with the most to do, which may take hours on a CPU.
TIMEOUT = timedelta(hours=24)


def gather_volumes(
    how: Measuring, split: ShardSplit, pairs: list[VolumePair], volumes_out: Path | None
) -> tuple[list[VolumeFigures], VolumeImages | None]:
    """Measure every volume once, over all processes. Collective: ALL ranks call it.

    Args:
        how: what with.
        split: where the volumes are.
        pairs: the volumes, the same on every rank.
        volumes_out: folder for the restored volumes, if they are wanted.

    Returns:
        The figures of all volumes in the order of their keys, on every rank; and the images of the first of `pairs`, on
        the main process.

    Raises:
        RunError: a model gives NaN.
    """
    rank, world_size = 0, int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        state = PartialState(cpu=how.device.type == "cpu", timeout=TIMEOUT)
        rank = state.process_index
    own = pairs[rank::world_size]
    found: list[VolumeFigures] = []
    shown: VolumeImages | None = None
    for figures, images in track(measure(how, split, own), "volumes", len(own)):
        found.append(figures)
        if volumes_out is not None:
            save(volumes_out, images)
        if rank == 0 and shown is None:
            shown = images
    volumes = gather_object(found) if world_size > 1 else found
    return sorted(volumes, key=lambda volume: volume.keys[0]), shown


def leave_group() -> None:
    """Leave the group of processes, if there is one. Collective: ALL ranks call it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState().destroy_process_group()


def save(folder: Path, images: VolumeImages) -> None:
    """Write a restored volume, RAS+, on the set's grid around the origin; the set does not hold the scan's place."""
    voxels = images.restored[MODEL]
    affine = np.diag([*images.spacing_mm, 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(voxels.shape) - 1) / 2
    with atomic_path(folder / f"{images.name}.nii.gz") as temporary:
        write_volume(Volume(voxels, affine), temporary)
