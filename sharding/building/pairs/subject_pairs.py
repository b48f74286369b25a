"""Make a subject's low/high volume pairs, real and synthetic, on the high-field grid."""

from upfield.sharding.building.pairs.map_pairs import pairs_of_map
from upfield.sharding.building.pairs.pair import SubjectPairs
from upfield.sharding.building.pairs.scan_pairs import pairs_of_scans
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import ShardConfig


def make_pairs(subject: Subject[SourceVolume], config: ShardConfig) -> SubjectPairs:
    """Read a subject's files once and make all pairs of low-field and high-field volumes from them.

    If `config.save_volumes` is set, each volume is saved to that folder as soon as it is made.

    Args:
        subject: the subject, with the headers of its files.
        config: grids, ranges, seed, and the folder for saved volumes.

    Raises:
        VolumeError: a file's voxels cannot be used, or the file has changed since its header was read.
    """
    return pairs_of_scans(subject, config) if subject.labels is None else pairs_of_map(subject, config)
