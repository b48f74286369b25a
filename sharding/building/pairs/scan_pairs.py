"""Make pairs from scans: real pairs, and synthetic low fields for high-field scans."""

from upfield.imaging.air import Air, estimate_air, raise_to_air
from upfield.imaging.normalisation import normalise_in_place
from upfield.imaging.plausibility.brains import is_skull_stripped
from upfield.imaging.volume import Volume, load_volume
from upfield.sharding.building.align import Alignment, register, resample_aligned
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.building.pairs.low_field import synthetic_low, tissues_of
from upfield.sharding.building.pairs.pair import Pair, SubjectPairs
from upfield.sharding.building.saved_volumes import HIGH_NAME, save_volume
from upfield.sharding.building.voxel_doubts import find_doubts
from upfield.sharding.cohorts.duplicates import hash_voxels
from upfield.sharding.cohorts.problems import Field
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import ShardConfig


def pairs_of_scans(subject: Subject[SourceVolume], config: ShardConfig) -> SubjectPairs:
    """Read a subject's scans once and make all pairs of low-field and high-field volumes from them.

    The high field is scaled in place, so that memory holds only the pairs, in half precision, and the volume that is
    being processed.

    Args:
        subject: the subject, with the headers of its files.
        config: grids, ranges, seed, and the folder for saved volumes.

    Raises:
        VolumeError: a file's voxels cannot be used, or the file has changed since its header was read.
    """
    assert subject.high is not None
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
    tissues = tissues_of(high, subject.units, subject.contrast, config)
    pairs: list[Pair] = []
    for unit in subject.units:
        if unit.kind == "real":
            assert low_file is not None
            low = resampler.low_from_file(low_file, airs["low"])
            parameters = {"alignment": alignment.to_tree()} if alignment else {}
            parameters |= {"space": subject.space} if subject.space else {}
            up = resampler.low_to_high(low.voxels)
        else:
            low, up, parameters = synthetic_low(high, resampler, unit, subject.contrast, config, tissues)
        save_volume(config.save_volumes, subject, unit.volume_name, low)
        source = subject.low if unit.kind == "real" else subject.high
        pairs.append(Pair(unit, normalise_in_place(up, str(source)), high_half, parameters))
    return SubjectPairs(pairs, alignment, voxel_hashes, doubts, stripped)


def _load(source: SourceVolume) -> Volume:
    """Read a volume or slice stack, in RAS+."""
    return load_volume(source.paths, source.header, source.traces)


def _aligned(high: Volume, air: Air, low: Volume, alignment: Alignment, subject: Subject) -> Volume:
    # `resize` maps corners to corners, which is correct only if both fields cover the same region.
    return resample_aligned(high, air.padding, alignment, low, "low" if subject.fit == "resize" else "high")
