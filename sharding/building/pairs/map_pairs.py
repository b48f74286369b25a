"""Make pairs from a label map: each variant is another head, of which both fields are rendered."""

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import VolumeError
from upfield.imaging.normalisation import normalise_in_place
from upfield.imaging.resample import box_centre
from upfield.imaging.volume import Volume, load_volume
from upfield.sharding.building.field_resampler import FieldResampler, to_world
from upfield.sharding.building.generator import generator_for
from upfield.sharding.building.pairs.low_field import IMAGE_LAWS, LowField
from upfield.sharding.building.pairs.pair import Pair, SubjectPairs
from upfield.sharding.building.saved_volumes import HIGH_NAME, LABELS_NAME, partner_name, save_volume
from upfield.sharding.cohorts.duplicates import hash_voxels
from upfield.sharding.cohorts.problems import Problem
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.phantoms.label_head import LabelHead, draw_head, high_field, low_field
from upfield.sharding.phantoms.label_map import LabelMap, check_label_map, make_label_map
from upfield.sharding.shardset.sample_key import Unit


def find_map_problem(subject: Subject[SourceVolume]) -> Problem | None:
    """Read a subject's label map, and return the reason why it cannot be used, or None; runs in a worker."""
    source = subject.labels
    assert source is not None
    try:
        check_label_map(source.paths[0], subject.labels_as)
    except VolumeError as error:
        return Problem(subject.cohort, subject.name, "labels", "voxels", error.where, error.problem)
    return None


def pairs_of_map(subject: Subject[SourceVolume], config: ShardConfig) -> SubjectPairs:
    """Read a subject's label map once, and render a head of its own for each of the subject's pairs.

    Args:
        subject: the subject, with the header of its label map.
        config: grids, ranges, seed, and the folder for saved volumes.

    Raises:
        VolumeError: the file is not a label map of a head, or has changed since its header was read.
        InputError: `labels_as` names something that is not known.
    """
    source = subject.labels
    assert source is not None
    volume = load_volume(source.paths, source.header, source.traces)
    voxel_hash = hash_voxels(volume.voxels)
    label_map = make_label_map(volume, str(source), subject.labels_as)
    del volume
    pairs = [_pair(subject, unit, label_map, config) for unit in subject.units]
    return SubjectPairs(pairs, None, {"labels": voxel_hash}, [], {})


def _pair(subject: Subject[SourceVolume], unit: Unit, label_map: LabelMap, config: ShardConfig) -> Pair:
    """Draw one head, and render and save both fields of it."""
    rng = generator_for(config.seed, unit.cohort, unit.subject, unit.variant)
    head = draw_head(label_map, config.geometry, config.synthetic.heads, rng)
    high, measured = high_field(head, config.synthetic.heads, rng)
    folder, low_name = config.save_volumes, unit.volume_name
    save_volume(folder, subject, partner_name(low_name, HIGH_NAME), high)
    save_volume(folder, subject, partner_name(low_name, LABELS_NAME), head)
    high_half = _normalise(high.voxels, unit, subject)
    low, up, drawn = _low_field(head, high, unit, config, rng)
    save_volume(folder, subject, low_name, low)
    parameters = {"head": head.parameters, "high_field": measured, **drawn}
    labels = head.labels if config.keep_labels else None
    return Pair(unit, _normalise(up, unit, subject), high_half, parameters, labels)


def _normalise(voxels: NDArray[np.float32], unit: Unit, subject: Subject[SourceVolume]) -> NDArray[np.float16]:
    """Scale `(X, Y, Z)` to [0, 1] in place, and return it in half precision."""
    where = str(subject.labels)
    try:
        return normalise_in_place(voxels, where)
    except VolumeError as error:
        problem = f"variant {unit.variant} shows nearly nothing within the grid"
        raise VolumeError(where, f"{problem}. Enlarge geometry.high_shape, or narrow synthetic.heads.") from error


def _low_field(head: LabelHead, high: Volume, unit: Unit, config: ShardConfig, rng: np.random.Generator) -> LowField:
    """Make the low field of a head; the results are those of `synthetic_low`."""
    centre_mm = to_world(high.affine, box_centre(high.voxels.shape))
    resampler = FieldResampler(config.geometry, centre_mm)
    if law := IMAGE_LAWS.get(config.synthetic.law(unit.variant, maps=True)):
        return law(high, resampler, config, rng)
    low, drawn = low_field(head, config.synthetic.physics, rng)
    return low, resampler.acquired_to_high(low, high), {"recipe": "physics", **drawn}
