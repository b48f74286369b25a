"""Read label maps of heads, check them, and prepare them for rendering."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.common.errors import InputError, VolumeError
from upfield.imaging.extent import size_problem
from upfield.imaging.head_mask import connected_parts, enlarge_mask
from upfield.imaging.resample import linear_weights
from upfield.imaging.volume import Volume, read_volume
from upfield.sharding.phantoms.anatomy import apply_along_axes
from upfield.sharding.phantoms.label_tissues import KNOWN, PARTNERS, STRUCTURES, LabelClass
from upfield.sharding.physics.relaxation import Tissue

LabelsAs = Mapping[int, int | str]

# Layers are 1 mm thick. Deeper voxels belong to the last one.
NUM_LAYERS = {"surface": 16, "brain": 6}
EYES = ("eye", "eye muscle", "optic nerve")
# Soft tissue this near to the eyes, and this deep, is the fat of the orbit.
ORBIT_MM, ORBIT_DEPTH_MM = 9.0, 6.0
# A map was cut off by its field of view where its outermost plane shows more than this share of its largest plane. An
# ellipsoid shows some in its outermost plane, the more the fewer planes there are.
CUT_SHARE = 0.02
ELLIPSOID_SHARE = 5.0
# A rotated head would show that cut as an oblique plane, so the last plane is repeated this far.
EXTENSION_MM = 20.0
# Standard deviation of the smoothing of the head's surface.
SMOOTHING_MM = 2.4
# A map with more unknown labels is probably an image.
MOST_UNKNOWN = 20
# Voxels of a head, of which every second one along each axis is counted.
LEAST_VOXELS = 100
NO_HEAD = "the labels form no head: too few voxels are connected. Choose a label map of a head."


@dataclass(frozen=True)
class LabelMap:
    """The label map of one head, prepared for rendering."""

    classes: NDArray[np.unsignedinteger]
    """`(I, J, K)`, for each voxel of a box around the head its place in `kinds`, in RAS+; 0 is air, also at the
    border."""
    kinds: tuple[LabelClass, ...]
    """What each class shows."""
    partners: NDArray[np.intp]
    """`(kinds,)`, the class of the same structure on the other side."""
    spacing_mm: NDArray[np.float64]
    """`(3,)`, voxel size."""
    view_vox: NDArray[np.float64]
    """`(3, 2)`, first and last voxel of the map along each axis. Outside them, its border is repeated."""


def read_label_map(path: Path, labels_as: LabelsAs) -> LabelMap:
    """Read a label map and check it.

    Args:
        path: file of one 3-D volume of whole numbers.
        labels_as: meaning of numbers that are not known: a known number, or the name of a tissue.

    Raises:
        VolumeError: the file is unreadable or does not hold a label map of a head.
        InputError: `labels_as` names something that is not known.
    """
    return make_label_map(read_volume(path), str(path), labels_as)


def make_label_map(volume: Volume, where: str, labels_as: LabelsAs) -> LabelMap:
    """Check a label map and prepare it for rendering.

    Args:
        volume: `(I, J, K)` in RAS+.
        where: name of the map in error messages.
        labels_as: meaning of numbers that are not known: a known number, or the name of a tissue.

    Raises:
        VolumeError: the volume is not a label map of a head.
        InputError: `labels_as` names something that is not known.
    """
    numbers, names = _numbers_and_names(volume, where, labels_as)
    kinds = [LabelClass(0, STRUCTURES["air"], group="air")]
    first = np.zeros(max(names) + 1, np.int16)
    for number, name in names.items():
        if name != "air":
            first[number] = len(kinds)
            kinds += _layers_of(number, name)
    classes = first[numbers]
    classes, view_vox = _boxed(classes, volume.spacing_mm, where)
    spacing_mm = volume.spacing_mm
    _split_layers(classes, kinds, spacing_mm)
    partners = _partners(kinds, names, labels_as)
    return LabelMap(classes.astype(np.min_scalar_type(len(kinds))), tuple(kinds), partners, spacing_mm, view_vox)


def check_label_map(path: Path, labels_as: LabelsAs) -> None:
    """Check a label map without preparing it; see `read_label_map`."""
    _numbers_and_names(read_volume(path), str(path), labels_as)


def _numbers_and_names(volume: Volume, where: str, labels_as: LabelsAs) -> tuple[NDArray[np.int16], dict[int, str]]:
    """Return the labels `(I, J, K)`, and the name of the structure of each number that is present."""
    if problem := size_problem(np.array(volume.voxels.shape) * volume.spacing_mm):
        raise VolumeError(where, f"{problem}. Check the spacing in the header.")
    numbers = _whole_numbers(volume.voxels, where)
    present = np.flatnonzero(np.bincount(numbers.ravel()))
    names = _structures(present, where, labels_as)
    if "air" not in names.values():
        raise VolumeError(where, "no voxel has the label 0, which is the background. Set all voxels of air to 0.")
    if len(names) == 2:
        raise VolumeError(
            where, f"expected several labels, found only label {present[1]}. Choose a label map of a head."
        )
    return numbers, names


def check_labels_as(labels_as: LabelsAs) -> None:
    """Check that `labels_as` gives each number a known meaning.

    Raises:
        InputError: a value is neither a known number nor the name of a tissue.
    """
    for number, meaning in labels_as.items():
        if meaning not in (KNOWN if isinstance(meaning, int) else STRUCTURES):
            raise InputError(
                f"labels_as: {number}: expected a known label number or one of {', '.join(Tissue)}, found {meaning!r}."
            )


def _whole_numbers(voxels: NDArray[np.float32], where: str) -> NDArray[np.int16]:
    """Convert `(I, J, K)` to int16 `(I, J, K)`."""
    highest = np.iinfo(np.int16).max
    if voxels.min() < 0 or voxels.max() > highest:
        wrong = voxels.min() if voxels.min() < 0 else voxels.max()
        raise VolumeError(where, f"expected labels from 0 to {highest}, found {wrong:g}. Choose a label map.")
    numbers = voxels.astype(np.int16)
    if (odd := voxels != numbers).any():
        raise VolumeError(
            where,
            f"labels must be whole numbers, but {int(odd.sum())} voxels are not, for example {voxels[odd][0]:g}. "
            "Choose a label map, and resample it with nearest-neighbour interpolation only.",
        )
    return numbers


def _structures(present: NDArray[np.intp], where: str, labels_as: LabelsAs) -> dict[int, str]:
    """Return the name of each label's structure."""
    check_labels_as(labels_as)
    names: dict[int, str] = {}
    unknown: list[int] = []
    for number in present.tolist():
        meaning = labels_as.get(number, number)
        name = KNOWN.get(meaning) if isinstance(meaning, int) else meaning
        if name is None:
            unknown.append(number)
        else:
            names[number] = name
    if len(unknown) > MOST_UNKNOWN:
        raise VolumeError(
            where, f"expected a label map, found {len(unknown)} unknown numbers, as in an image. Choose a label map."
        )
    if unknown:
        named = ", ".join(map(str, unknown))
        are_unknown = f"labels {named} are unknown" if len(unknown) > 1 else f"label {named} is unknown"
        raise VolumeError(
            where,
            f"{are_unknown}. Say with labels_as what each unknown label shows, for example "
            f"labels_as: {{{unknown[0]}: fat}}.",
        )
    return names


def _layers_of(number: int, name: str) -> list[LabelClass]:
    """Return the classes into which a label of this structure is divided."""
    structure = STRUCTURES[name]
    layers = [layer + 0.5 for layer in range(NUM_LAYERS[structure.layers])] if structure.layers else [None]
    kinds = [LabelClass(number, structure, layer, name) for layer in layers]
    if name == "soft tissue":
        # The class after the last layer, in which `_split_layers` puts what lies near the eyes.
        kinds.append(LabelClass(number, STRUCTURES["orbital fat"], None, "orbital fat"))
    return kinds


def _boxed(
    classes: NDArray[np.int16], spacing_mm: NDArray[np.float64], where: str
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Crop to the head, drop parts apart from it, and repeat the border where the field of view cuts the head off.

    Returns:
        The box `(I, J, K)`, and `view_vox` of `LabelMap`.
    """
    parts, sizes = connected_parts(classes[::2, ::2, ::2] > 0)
    sizes[0] = 0
    head = parts == sizes.argmax() if sizes.any() else parts < 0
    if head.sum() < LEAST_VOXELS:
        raise VolumeError(where, NO_HEAD)
    # Some maps are ragged where the signal of the scan behind them was weak.
    filled = np.asarray(ndimage.binary_fill_holes(head))
    smooth = ndimage.gaussian_filter(np.pad(filled, 3, mode="edge").astype(np.float32), SMOOTHING_MM / 2 / spacing_mm)[
        3:-3, 3:-3, 3:-3
    ]
    head = np.asarray(ndimage.binary_dilation(smooth > 0.5), dtype=np.bool_)
    # The smoothing leaves nothing of what is smaller than a head.
    if head.sum() < LEAST_VOXELS:
        raise VolumeError(where, NO_HEAD)
    classes = np.where(enlarge_mask(head, classes.shape, 2), classes, np.int16(0))
    pads: list[tuple[int, int]] = []
    box: list[slice] = []
    for axis in range(3):
        area = (classes > 0).sum(axis=tuple({0, 1, 2} - {axis}))
        planes = np.flatnonzero(area)
        ends = int(planes[0]), int(planes[-1])
        box.append(slice(ends[0], ends[1] + 1))
        least = (CUT_SHARE + ELLIPSOID_SHARE / len(planes)) * area.max()
        before, after = (math.ceil(EXTENSION_MM / spacing_mm[axis]) if area[end] > least else 0 for end in ends)
        pads.append((before, after))
    extended = np.pad(classes[tuple(box)], pads, mode="edge")
    padded = np.pad(extended, 1)
    view = [(1 + before, padded.shape[axis] - 2 - after) for axis, (before, after) in enumerate(pads)]
    return padded, np.array(view, dtype=np.float64)


def _split_layers(classes: NDArray[np.int16], kinds: list[LabelClass], spacing_mm: NDArray[np.float64]) -> None:
    """Replace the first layer of each label, `(I, J, K)`, by the layer in which a voxel lies."""
    layered = [place for place, kind in enumerate(kinds) if kind.layer_mm == 0.5]
    reach = {
        "surface": _depth_mm(classes, spacing_mm),
        "brain": _distance_mm(
            classes, [kind.structure.is_brain and not kind.structure.layers for kind in kinds], spacing_mm
        ),
    }
    eyes = _distance_mm(classes, [kind.group in EYES for kind in kinds], spacing_mm)
    for first in layered:
        kind = kinds[first]
        inside = np.nonzero(classes == first)
        count = NUM_LAYERS[kind.structure.layers]
        places_mm = reach[kind.structure.layers][inside]
        layer = np.clip(places_mm, 0, count - 1).astype(np.int16)
        if kind.group == "soft tissue":
            layer[(eyes[inside] < ORBIT_MM) & (places_mm > ORBIT_DEPTH_MM)] = count
        classes[inside] = first + layer


def _depth_mm(classes: NDArray[np.int16], spacing_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Compute the depth `(I, J, K)` below the surface of the head."""
    coarse = classes[::2, ::2, ::2] == 0
    parts, _ = connected_parts(coarse)
    outside = parts == parts[0, 0, 0]
    return _refined(np.asarray(ndimage.distance_transform_edt(~outside, sampling=2 * spacing_mm)), classes.shape)


def _distance_mm(
    classes: NDArray[np.int16], chosen: list[bool], spacing_mm: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Compute the distance `(I, J, K)` to the nearest voxel of the chosen classes; it is large if there is none."""
    mask = np.array(chosen)[classes[::2, ::2, ::2]]
    if not mask.any():
        return np.full(classes.shape, 1e3, np.float32)
    return _refined(np.asarray(ndimage.distance_transform_edt(~mask, sampling=2 * spacing_mm)), classes.shape)


def _refined(coarse: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Interpolate every second voxel `(A, B, C)` to `shape` linearly."""
    hats = []
    for size, count in zip(shape, coarse.shape, strict=True):
        place = np.minimum(np.arange(size) / 2, count - 1)
        hats.append(linear_weights(place, count))
    return apply_along_axes(coarse, hats)


def _partners(kinds: list[LabelClass], names: dict[int, str], labels_as: LabelsAs) -> NDArray[np.intp]:
    """Find the class of the same structure on the other side, `(kinds,)`; add classes for numbers that are absent."""
    meanings = {number: labels_as.get(number, number) for number in names}
    places = {(kind.number, kind.layer_mm, kind.group): place for place, kind in enumerate(kinds)}
    partners = list(range(len(kinds)))
    for place, kind in enumerate(list(kinds)):
        meaning = meanings.get(kind.number, kind.number)
        other = PARTNERS.get(meaning) if isinstance(meaning, int) else None
        if other is None:
            continue
        # A number of the user's own becomes the one that stands for the other side, if there is one.
        own = [number for number, each in meanings.items() if each == other]
        number = own[0] if other not in own and own else other
        key = (number, kind.layer_mm, kind.group)
        if key not in places:
            places[key] = len(kinds)
            kinds.append(LabelClass(number, kind.structure, kind.layer_mm, kind.group))
            partners.append(place)
        partners[place] = places[key]
    return np.array(partners)
