"""Share the volumes of a split out over the processes of a job, and bring their figures together."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import gather_object

from upfield.common.progress import track
from upfield.evaluation.measure import Measuring, VolumeFigures, VolumeImages, measure
from upfield.sharding.previews.selection import VolumePair
from upfield.sharding.shardset.shard_split import ShardSplit

# Processes wait for the one with the most to do, which may take hours on a CPU.
TIMEOUT = timedelta(hours=24)


@dataclass
class Gathered:
    """What was measured so far: a method that several models are compared with is measured once."""

    volumes: list[VolumeFigures] = field(default_factory=list)
    """In the order of their keys, each with all methods."""
    shown: VolumeImages | None = None
    """Images of the first volume, on the main process."""

    @property
    def methods(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self.volumes[0].slices) if self.volumes else ()

    def add(self, volumes: list[VolumeFigures], shown: VolumeImages | None) -> None:
        """Join other methods of the same volumes."""
        joined = [old.joined(new) for old, new in zip(self.volumes, volumes, strict=True)] if self.volumes else volumes
        self.volumes = joined
        self.shown = self.shown.joined(shown) if self.shown and shown else shown or self.shown


def gather_volumes(
    how: Measuring,
    split: ShardSplit,
    pairs: list[VolumePair],
    measured: Callable[[VolumeImages], None] = lambda _: None,
) -> tuple[list[VolumeFigures], VolumeImages | None]:
    """Measure every volume once, over all processes. Collective: ALL ranks call it.

    Args:
        how: what with.
        split: where the volumes are.
        pairs: the volumes, the same on every rank.
        measured: takes the images of each volume that this process has measured.

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
        measured(images)
        if rank == 0 and shown is None:
            shown = images
    volumes = gather_object(found) if world_size > 1 else found
    return sorted(volumes, key=lambda volume: volume.keys[0]), shown


def leave_group() -> None:
    """Leave the group of processes, if there is one. Collective: ALL ranks call it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState().destroy_process_group()
