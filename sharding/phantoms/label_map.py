"""Read label maps of heads and check them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.volume import Volume


@dataclass(frozen=True)
class LabelMap:
    """The label map of one head, prepared for rendering."""

    classes: NDArray[np.uint8]
    """`(I, J, K)`, the class of each voxel in a box around the head, in RAS+; class 0 is air."""


def read_label_map(path: Path, labels_as: Mapping[int, int | str]) -> LabelMap:
    """Read a label map and check it.

    Args:
        path: file of one 3-D volume of whole numbers.
        labels_as: meaning of numbers that are not known: a known number, or the name of a tissue.

    Raises:
        VolumeError: the file is unreadable or does not hold a label map of a head.
        InputError: `labels_as` names something that is not known.
    """
    raise NotImplementedError


def make_label_map(volume: Volume, where: str, labels_as: Mapping[int, int | str]) -> LabelMap:
    """Check the label map `volume` and prepare it for rendering; see `read_label_map`."""
    raise NotImplementedError
