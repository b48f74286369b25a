"""Draw which tissues each class of a head consists of, and how bright it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from upfield.common.ranges import Range
from upfield.sharding.phantoms.anatomy import F32
from upfield.sharding.phantoms.label_tissues import LabelClass
from upfield.sharding.physics.relaxation import Tissue

TISSUES = tuple(Tissue)
# The skin's thickness, and over how many mm fat gives way to muscle.
SKIN_MM: Range = (1.0, 2.4)
FAT_EDGE_MM = 0.8
FAT_SHARE: Range = (0.4, 0.85)
MUSCLE_SHARE: Range = (0.65, 1.0)


def draw_mixtures(
    kinds: tuple[LabelClass, ...], parameters: dict[str, Any], rng: np.random.Generator
) -> tuple[F32, F32]:
    """Draw which tissues each class consists of, and what texture adds to them.

    Args:
        kinds: the classes.
        parameters: what was drawn for the head; the keys are those of `LabelHead.parameters`.
        rng: generator that draws brightness, shares and strength of texture.

    Returns:
        `mixtures` and `textures` of `LabelHead`, each `(classes, tissues)` float32.
    """
    mixtures = np.zeros((len(kinds), len(TISSUES)))
    textures = np.zeros_like(mixtures)
    groups = sorted({kind.group for kind in kinds})
    brightness = dict(zip(groups, 1 + parameters["label_spread"] * rng.normal(size=len(groups)), strict=True))
    strength = dict(zip(groups, rng.uniform(0.5, 1.5, len(groups)), strict=True))
    numbers = sorted({kind.number for kind in kinds})
    own = dict(zip(numbers, 1 + 0.3 * parameters["label_spread"] * rng.normal(size=len(numbers)), strict=True))
    shift = dict(zip(groups, rng.normal(scale=0.08, size=len(groups)), strict=True))
    for place, kind in enumerate(kinds):
        mixture = _layer_mixture(kind, parameters)
        toward = TISSUES.index(kind.structure.toward)
        row = np.array([mixture.get(tissue, 0.0) for tissue in TISSUES])
        # Structures of several tissues differ between people in their shares.
        if len(kind.structure.mixture) > 1:
            share = np.clip(row * (1 + 4 * shift[kind.group] * (np.arange(len(TISSUES)) == row.argmax())), 0, None)
            row = share / share.sum()
        gain = kind.structure.texture * parameters["texture"] * strength[kind.group]
        textures[place] = -gain * row
        textures[place, toward] += gain
        factor = max(brightness[kind.group] * own[kind.number], 0.2)
        mixtures[place] = row * factor
        textures[place] *= factor
    mixtures[0] = textures[0] = 0
    return mixtures.astype(np.float32), textures.astype(np.float32)


def _layer_mixture(kind: LabelClass, parameters: dict[str, Any]) -> Mapping[Tissue, float]:
    """Return the share of each tissue in a class; below the skin lies fat, and below fat, muscle.

    Fibres, hair and tendons run through all of them. They have no more signal than bone.
    """
    if kind.structure.layers != "surface" or kind.layer_mm is None:
        return kind.structure.mixture
    skin = 1 / (1 + np.exp((kind.layer_mm - parameters["skin_mm"]) / 0.3))
    muscle = (1 - skin) / (1 + np.exp((parameters["fat_mm"] - kind.layer_mm) / FAT_EDGE_MM))
    fat = 1 - skin - muscle
    fatty, fleshy = parameters["fat_share"], parameters["muscle_share"]
    return {
        Tissue.SKIN: skin * fleshy,
        Tissue.MUSCLE: muscle * fleshy + fat * (1 - fatty) / 2,
        Tissue.FAT: fat * fatty + muscle * (1 - fleshy) / 4,
        Tissue.BONE: (skin + muscle * 0.75) * (1 - fleshy) + fat * (1 - fatty) / 2,
    }
