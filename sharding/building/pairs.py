"""Make a subject's low/high volume pairs, real and synthetic, on the high-field grid."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.air import Air, estimate_air, raise_to_air
from upfield.imaging.normalisation import normalise_in_place
from upfield.imaging.plausibility.brains import is_skull_stripped
from upfield.imaging.volume import Volume, load_volume
from upfield.sharding.building.align import Alignment, register, resample_aligned
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.building.saved_volumes import HIGH_NAME, save_volume
from upfield.sharding.building.synthetic import degrade, draw_degradation, generator_for
from upfield.sharding.building.voxel_doubts import find_doubts
from upfield.sharding.cohorts.duplicates import hash_voxels
from upfield.sharding.cohorts.problems import Field, Problem
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shardset.sample_key import Unit


@dataclass(frozen=True)
class Pair:
    """A low-field volume resampled to the high-field grid, and its high-field partner."""

    unit: Unit
    """Subject, kind and variant of the pair."""
    low: NDArray[np.float16]
    """`(X, Y, Z)` in [0, 1], on the high-field grid."""
    high: NDArray[np.float16]
    """`(X, Y, Z)` in [0, 1], on the same grid."""
    parameters: dict[str, Any]
    """The parameters of a synthetic low field, or the alignment of a real pair."""


@dataclass(frozen=True)
class SubjectPairs:
    """The pairs of one subject, and what was found in its files."""

    pairs: list[Pair]
    """One pair per unit of the subject."""
    alignment: Alignment | None
    """The motion of its high field; None if it was not registered."""
    voxel_hashes: dict[Field, str]
    """Result of `hash_voxels` for each volume as it was read."""
    doubts: list[Problem]
    """Doubts about its volumes, which only their voxels show."""
    stripped: dict[Field, bool]
    """Whether each volume shows a brain without skull."""


def make_pairs(subject: Subject[SourceVolume], config: ShardConfig) -> SubjectPairs:
    """Read a subject's files once and make all pairs of low-field and high-field volumes from them.

    If `config.save_volumes` is set, each volume is saved to that folder as soon as it is resampled. The high field is
    scaled in place, so that memory holds only the pairs, in half precision, and the volume that is being processed.

    Args:
        subject: the subject, with the headers of its files.
        config: grids, ranges, seed, and the folder for saved volumes.

    Raises:
        VolumeError: a file's voxels cannot be used, or the file has changed since its header was read.
    """
    low_file = _load(subject.low) if subject.low else None
    high_file = _load(subject.high)
    voxel_hashes: dict[Field, str] = {"low": hash_voxels(low_file.voxels)} if low_file else {}
    voxel_hashes["high"] = hash_voxels(high_file.voxels)
    files: dict[Field, Volume] = {"high": high_file}
    if low_file:
        files["low"] = low_file
    airs: dict[Field, Air] = {field: estimate_air(volume.voxels) for field, volume in files.items()}
    doubts = find_doubts(subject, files, airs, config.geometry)
    stripped: dict[Field, bool] = {field: is_skull_stripped(volume) for field, volume in files.items()}
    files = {field: raise_to_air(volume, airs[field]) for field, volume in files.items()}
    # The files leave the dictionary, so that none stays in memory after it has been registered or resampled.
    high_file, low_file = files.pop("high"), files.pop("low", None)
    alignment = register(low_file, high_file, config.seed) if low_file and subject.align == "rigid" else None
    if low_file and alignment:
        high_file = _aligned(high_file, airs["high"], low_file, alignment, subject)
    resampler = FieldResampler.around(config.geometry, subject.fit, high_file, airs["high"])
    high = resampler.high_from_file(high_file, airs["high"])
    save_volume(config.save_volumes, subject, HIGH_NAME, high)
    high_half = normalise_in_place(high.voxels, str(subject.high))
    pairs: list[Pair] = []
    for unit in subject.units:
        if unit.kind == "real":
            assert low_file is not None
            low = resampler.low_from_file(low_file, airs["low"])
            parameters = {"alignment": alignment.to_tree()} if alignment else {}
            parameters |= {"space": subject.space} if subject.space else {}
        else:
            low, parameters = _synthetic(high, resampler, unit, config)
        save_volume(config.save_volumes, subject, unit.volume_name, low)
        source = subject.low if unit.kind == "real" else subject.high
        up = normalise_in_place(resampler.low_to_high(low.voxels), str(source))
        pairs.append(Pair(unit, up, high_half, parameters))
    return SubjectPairs(pairs, alignment, voxel_hashes, doubts, stripped)


def _load(source: SourceVolume) -> Volume:
    """Read a volume or slice stack, in RAS+."""
    return load_volume(source.paths, source.header, source.traces)


def _aligned(high: Volume, air: Air, low: Volume, alignment: Alignment, subject: Subject) -> Volume:
    # `resize` maps corners to corners, which is correct only if both fields cover the same region.
    return resample_aligned(high, air.padding, alignment, low, "low" if subject.fit == "resize" else "high")


def _synthetic(
    high: Volume, resampler: FieldResampler, unit: Unit, config: ShardConfig
) -> tuple[Volume, dict[str, Any]]:
    rng = generator_for(config.seed, unit.cohort, unit.subject, unit.variant)
    parameters = draw_degradation(config.synthetic, rng)
    small = resampler.high_to_low(high, average=config.geometry.average)
    voxels = degrade(np.clip(small.voxels, 0, 1), parameters, config.synthetic.noise_bright_ratio, rng)
    return replace(small, voxels=voxels), parameters.to_tree()
