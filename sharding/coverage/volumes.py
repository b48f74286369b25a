"""Choose synthetic low-field volumes of a split, and bring a real scan to the same grid in the same way."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import VolumeError
from upfield.common.places import refuse_other_than_scan
from upfield.imaging.air import estimate_air, raise_to_air
from upfield.imaging.contrast import gather_evidence, name_evidence, read_sidecar
from upfield.imaging.extent import size_problem
from upfield.imaging.normalisation import normalise_in_place
from upfield.imaging.volume_file import read_volume_and_header
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import VolumePair, group_volumes

REMEDY = "Check that the scan shows a head."


@dataclass(frozen=True)
class Scan:
    """A real scan on the high-field grid of a set."""

    name: str
    """Its file name."""
    low: NDArray[np.float32]
    """`(X, Y, Z)` in [0, 1]."""
    contrast: str | None
    """Its contrast, such as T1w, if its name, JSON file or header says it."""
    doubt: str | None
    """A sentence without a full stop if air and head cannot be told apart, otherwise None."""


def read_scan(path: Path, geometry: GeometryConfig) -> Scan:
    """Read a scan and bring it to the high-field grid of a set, as `enhance` brings it to the grid of a model.

    The grid is placed around the head, the voxels are interpolated once, and the intensities are scaled to [0, 1].

    Args:
        path: NIfTI or MGH file.
        geometry: grids of the set.

    Raises:
        InputError: the path is something else than a scan, such as a DICOM series.
        VolumeError: the file is not one 3-D real volume, is not the size of a head, or is nearly constant.
    """
    refuse_other_than_scan(path)
    volume, header = read_volume_and_header(path)
    if problem := size_problem(np.array(volume.voxels.shape) * volume.spacing_mm):
        raise VolumeError(str(path), f"{problem}. Fix the spacing in the header, or leave the scan out.")
    air = estimate_air(volume.voxels)
    volume = raise_to_air(volume, air)
    # As in `enhance`, the scan is not averaged, even if the set is.
    resampler = FieldResampler.around(replace(geometry, average=False), "crop_pad", volume, air)
    voxels = resampler.high_from_file(volume, air).voxels
    normalise_in_place(voxels, str(path))
    evidence = gather_evidence(name_evidence(path.name), read_sidecar(path), header.descrip)
    contrast = next((sign.contrasts[0] for sign in evidence if len(sign.contrasts) == 1), None)
    return Scan(path.name, voxels, contrast, air.doubt)


def choose_synthetic(split: ShardSplit, num_volumes: int) -> list[VolumePair]:
    """Choose complete synthetic volumes, spread over cohorts, subjects and variants.

    Every cohort has its turn, within it every subject, and then every variant. The order of subjects and variants is
    that of a hash of their names, so the choice is the same for every call and depends on nothing else.

    Args:
        split: split to choose from.
        num_volumes: most volumes to choose.
    """
    num_slices = int(split.manifest.geometry["high_shape"][0])
    by_cohort: dict[str, dict[str, list[VolumePair]]] = defaultdict(lambda: defaultdict(list))
    pairs = [pair for pair in group_volumes(split) if pair.first.kind == "synthetic" and len(pair.keys) == num_slices]
    for pair in sorted(pairs, key=_rank):
        by_cohort[pair.first.cohort][pair.first.subject].append(pair)
    turns = [(turn, pair) for subjects in by_cohort.values() for turn, pair in enumerate(_take_turns(subjects))]
    return [pair for _, pair in sorted(turns, key=lambda turn: turn[0])][:num_volumes]


def _take_turns(subjects: dict[str, list[VolumePair]]) -> Iterator[VolumePair]:
    """Yield one volume of each subject, then the next one of each."""
    for number in range(max(map(len, subjects.values()))):
        yield from (pairs[number] for pairs in subjects.values() if number < len(pairs))


def _rank(pair: VolumePair) -> bytes:
    key = pair.first
    return hashlib.sha256(f"{key.cohort}/{key.subject}/{key.variant}".encode()).digest()


def read_low(split: ShardSplit, pair: VolumePair) -> NDArray[np.float32]:
    """Read the low field of a pair of volumes.

    Returns:
        `(X, Y, Z)` in [0, 1].

    Raises:
        ShardSetError: a shard is missing, truncated, or holds values outside 0..1.
    """
    split.request(pair.samples)
    low, _ = split.read_checked(pair.samples)
    return low[:, low.shape[1] // 2].astype(np.float32)
