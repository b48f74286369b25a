"""The label numbers that are known, the tissues that each consists of, and its partner on the other side.

Inside the brain, the numbers are FreeSurfer's. Outside it, 501 to 530 are those of the CHARM atlas, which FreeSurfer's
SAMSEG and SimNIBS use. The 15 maps that are published with SynthSeg show the same structures under these numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from upfield.sharding.physics.relaxation import Tissue


@dataclass(frozen=True)
class Structure:
    """What a label shows."""

    mixture: Mapping[Tissue, float]
    """Share of each tissue; the shares sum to 1."""
    toward: Tissue
    """The tissue that a positive texture brings the signal nearer to."""
    texture: float
    """Share of that tissue at one standard deviation of the texture."""
    is_brain: bool = False
    """Whether skull stripping keeps it."""
    layers: Literal["", "surface", "brain"] = ""
    """What its appearance depends on: the depth below the surface of the head, or the distance from the brain."""


def _brain(toward: Tissue, texture: float, **mixture: float) -> Structure:
    return Structure(_shares(mixture), toward, texture, is_brain=True)


def _outside(toward: Tissue, texture: float, **mixture: float) -> Structure:
    return Structure(_shares(mixture), toward, texture)


def _shares(mixture: Mapping[str, float]) -> Mapping[Tissue, float]:
    return {Tissue(name): share for name, share in mixture.items()}


STRUCTURES: Mapping[str, Structure] = {
    "air": _outside(Tissue.AIR, 0.0, air=1),
    "white matter": _brain(Tissue.GREY, 0.10, white=1),
    "cerebellar white matter": _brain(Tissue.GREY, 0.14, white=0.95, grey=0.05),
    "cortex": _brain(Tissue.WHITE, 0.12, grey=1),
    "cerebellar cortex": _brain(Tissue.WHITE, 0.20, grey=0.9, white=0.1),
    "thalamus": _brain(Tissue.WHITE, 0.14, deep_grey=0.85, white=0.15),
    "caudate": _brain(Tissue.WHITE, 0.08, grey=0.5, deep_grey=0.5),
    "putamen": _brain(Tissue.WHITE, 0.08, grey=0.3, deep_grey=0.7),
    "pallidum": _brain(Tissue.GREY, 0.12, deep_grey=0.4, white=0.6),
    "hippocampus": _brain(Tissue.WHITE, 0.14, grey=0.95, white=0.05),
    "amygdala": _brain(Tissue.WHITE, 0.08, grey=1),
    "accumbens": _brain(Tissue.WHITE, 0.10, grey=0.8, deep_grey=0.2),
    "ventral diencephalon": _brain(Tissue.GREY, 0.18, white=0.6, deep_grey=0.4),
    "brain stem": _brain(Tissue.GREY, 0.16, white=0.8, deep_grey=0.2),
    "choroid plexus": _brain(Tissue.FLUID, 0.20, grey=0.5, blood=0.2, fluid=0.3),
    "ventricle": _brain(Tissue.GREY, 0.02, fluid=1),
    "lesion": _brain(Tissue.WHITE, 0.15, lesion=0.9, white=0.1),
    "vessel of the brain": _brain(Tissue.FLUID, 0.10, blood=0.6, fluid=0.4),
    "optic nerve": _brain(Tissue.FLUID, 0.15, white=0.8, fluid=0.2),
    "outer fluid": Structure(_shares({"fluid": 0.94, "blood": 0.06}), Tissue.GREY, 0.06, layers="brain"),
    "spinal cord": _outside(Tissue.GREY, 0.15, white=0.75, grey=0.25),
    "artery": _outside(Tissue.FLUID, 0.05, blood=1),
    "vein": _outside(Tissue.GREY, 0.15, blood=0.85, grey=0.15),
    "eye": _outside(Tissue.MUSCLE, 0.02, vitreous=1),
    "eye muscle": _outside(Tissue.FAT, 0.10, muscle=1),
    "mucosa": _outside(Tissue.FLUID, 0.25, skin=0.5, muscle=0.3, blood=0.2),
    "compact bone": _outside(Tissue.MARROW, 0.08, bone=0.93, marrow=0.07),
    "spongy bone": _outside(Tissue.BONE, 0.25, marrow=0.5, bone=0.5),
    "skin": Structure(_shares({"skin": 1}), Tissue.FAT, 0.10, layers="surface"),
    "soft tissue": Structure(_shares({"muscle": 0.7, "fat": 0.3}), Tissue.FAT, 0.12, layers="surface"),
    "orbital fat": _outside(Tissue.MUSCLE, 0.08, fat=0.95, muscle=0.05),
} | {str(tissue): _outside(tissue, 0.0, **{tissue: 1}) for tissue in Tissue}

PAIRED = {
    "white matter": ((2, 41), (78, 79)),
    "cortex": ((3, 42), (19, 55), (20, 56), *((1000 + area, 2000 + area) for area in range(36))),
    "ventricle": ((4, 43), (5, 44)),
    "cerebellar white matter": ((7, 46),),
    "cerebellar cortex": ((8, 47), (183, 184)),
    "thalamus": ((9, 48), (10, 49)),
    "caudate": ((11, 50),),
    "putamen": ((12, 51),),
    "pallidum": ((13, 52),),
    "hippocampus": ((17, 53),),
    "amygdala": ((18, 54), (96, 97)),
    "lesion": ((25, 57), (81, 82)),
    "accumbens": ((26, 58),),
    "ventral diencephalon": ((28, 60), (27, 59)),
    "vessel of the brain": ((30, 62),),
    "choroid plexus": ((31, 63), (136, 163), (137, 164)),
}
SINGLE = {
    "air": (0, 501, 517, 901, 917),
    "ventricle": (14, 15, 72),
    "brain stem": (16, 170, 173, 174, 175, 178, 267),
    "outer fluid": (24, 257, 520),
    "lesion": (77,),
    "white matter": (192, 250, 251, 252, 253, 254, 255),
    "cerebellar cortex": (172,),
    "optic nerve": (85, 530, 930),
    "spinal cord": (126, 512, 912),
    "compact bone": (165, 515, 915),
    "spongy bone": (516, 916),
    "soft tissue": (258, 507, 907),
    "eye": (259, 506, 906),
    "artery": (502, 902),
    "eye muscle": (508, 908),
    "mucosa": (509, 909),
    "skin": (511, 911),
    "vein": (262, 514, 914),
}
# Label number -> structure.
KNOWN: Mapping[int, str] = {number: name for name, numbers in SINGLE.items() for number in numbers} | {
    number: name for name, pairs in PAIRED.items() for pair in pairs for number in pair
}
# Label number -> the number of the same structure on the other side.
PARTNERS: Mapping[int, int] = {
    number: other
    for pairs in PAIRED.values()
    for left, right in pairs
    for number, other in ((left, right), (right, left))
}


@dataclass(frozen=True)
class LabelClass:
    """The voxels of a label, or one layer of them, that are rendered alike."""

    number: int
    """Number in the label map."""
    structure: Structure
    """What it shows."""
    layer_mm: float | None = None
    """Distance of this layer from the surface or the brain, as `structure.layers` says."""
    group: str = field(default="")
    """Name of the structure. Classes of one group are equally bright but for a small spread."""
