"""Draw heads from label maps, and render them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.ranges import Range
from upfield.imaging.volume import Volume
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.phantoms.anatomy import F32, F64, TemplateGrid
from upfield.sharding.phantoms.configuration import RENDERED_CONTRAST, HeadsConfig
from upfield.sharding.phantoms.deformation import draw_deformation
from upfield.sharding.phantoms.head_mixtures import FAT_SHARE, MUSCLE_SHARE, SKIN_MM, TISSUES, draw_mixtures
from upfield.sharding.phantoms.head_texture import draw_texture, draw_vessels
from upfield.sharding.phantoms.head_view import View, draw_view
from upfield.sharding.phantoms.high_scan import draw_high_scan
from upfield.sharding.phantoms.label_map import LabelMap
from upfield.sharding.phantoms.label_sampling import Sampling, sample_classes
from upfield.sharding.phantoms.label_tissues import LabelClass
from upfield.sharding.physics.acquisition import acquire, draw_acquisition
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.relaxation import Tissue
from upfield.sharding.physics.sequences import tissue_signals

# Vessels run where the brain, its fluid, or soft tissue is.
VESSEL_GROUPS = ("white matter", "cortex", "outer fluid", "soft tissue", "cerebellar cortex")
# Sheets of fat lie between muscles, and leaves of white matter in the cerebellum.
SHEET_GROUPS = ("soft tissue", "eye muscle", "cerebellar cortex")
# Flowing blood is brighter or darker than its relaxation times say.
FLOW: Range = (0.7, 1.3)
BLOCK = 2**18


@dataclass(frozen=True)
class LabelHead:
    """One person's head on the high-field grid."""

    labels: NDArray[np.int16]
    """`(X, Y, Z)`, numbers as in the label map."""
    affine: F64
    """`(4, 4)`, voxel index -> world mm; the origin is the centre of the grid."""
    parameters: dict[str, Any]
    """Everything that was drawn for this head, as plain values, as it is recorded with each sample."""
    sampling: Sampling
    """Classes, with several samples in the voxels in which they meet."""
    mixtures: F32
    """`(classes, tissues)`, share of each tissue in each class, times the brightness of the class."""
    textures: F32
    """`(classes, tissues)`, what one unit of texture adds to the shares."""
    texture: F32
    """`(X, Y, Z)`."""
    vessel_voxels: NDArray[np.intp]
    """`(voxels,)`, flat indices of the voxels with thin vessels."""
    vessel_shares: F32
    """`(voxels,)`, the share of each that a vessel fills."""
    shown: NDArray[np.bool_]
    """`(X, Y, Z)`, True in the field of view, except where something was removed. Elsewhere, the high field is 0."""

    def render(self, signals: Mapping[Tissue, float], rng: np.random.Generator) -> Volume:
        """Render the head without noise. Two scans of one head show the same texture and vessels.

        Args:
            signals: signal of each tissue, for example from `tissue_signals`.
            rng: generator that draws the flow in the vessels, which differs between scans.

        Returns:
            `(X, Y, Z)` float32 on the high-field grid.
        """
        levels = np.array([signals[tissue] for tissue in TISSUES], np.float32)
        plain, textured = self.mixtures @ levels, self.textures @ levels
        voxels = np.empty(self.labels.shape, np.float32)
        flat, texture = voxels.reshape(-1), self.texture.reshape(-1)
        centres = self.sampling.centres.reshape(-1)
        for first in range(0, flat.size, BLOCK):
            part = slice(first, first + BLOCK)
            flat[part] = plain[centres[part]]
            flat[part] += textured[centres[part]] * texture[part]
        for first in range(0, self.sampling.edges.size, BLOCK):
            part = slice(first, first + BLOCK)
            places = self.sampling.edges[part]
            samples = self.sampling.samples[:, part]
            mean = sum(plain[row] for row in samples) + sum(textured[row] for row in samples) * texture[places]
            flat[places] = mean / np.float32(len(samples))
        blood = np.float32(signals[Tissue.BLOOD] * rng.uniform(*FLOW))
        flat[self.vessel_voxels] += self.vessel_shares * (blood - flat[self.vessel_voxels])
        return Volume(np.maximum(voxels, 0, out=voxels), self.affine)


def draw_head(
    label_map: LabelMap, geometry: GeometryConfig, config: HeadsConfig, rng: np.random.Generator
) -> LabelHead:
    """Draw a head from a label map: deformation, mirroring, tissues, texture, vessels, and field of view.

    Args:
        label_map: the map.
        geometry: the head is drawn on its high-field grid.
        config: ranges of what is drawn.
        rng: generator that draws everything.
    """
    grid = TemplateGrid(geometry.high_shape, geometry.high_spacing_mm)
    parameters = _draw_parameters(config, rng)
    deformation = draw_deformation(
        rng,
        grid,
        **{name: parameters[name] for name in ("coarse_rms_mm", "fine_rms_mm", "rotation_deg", "scale", "mirrored")},
    )
    view = draw_view(label_map, grid, deformation, parameters, rng)
    sampling = sample_classes(label_map, grid, deformation, view.anchor_mm)
    if parameters["mirrored"]:
        swap = label_map.partners.astype(sampling.centres.dtype)
        sampling = Sampling(swap[sampling.centres], sampling.edges, swap[sampling.samples])
    kinds = label_map.kinds
    sampling, shown = _hide(sampling, kinds, grid, view, parameters)
    mixtures, textures = draw_mixtures(kinds, parameters, rng)
    sheets = np.array([kind.group in SHEET_GROUPS for kind in kinds])[sampling.centres]
    texture = draw_texture(rng, grid, sheets)
    starts = np.flatnonzero(np.array([kind.group in VESSEL_GROUPS for kind in kinds])[sampling.centres])
    vessel_voxels, vessel_shares = draw_vessels(rng, grid, parameters["num_vessels"], starts)
    inside = sampling.centres.reshape(-1)[vessel_voxels] > 0
    numbers = np.array([kind.number for kind in kinds], np.int16)
    return LabelHead(
        labels=numbers[sampling.centres],
        affine=grid.affine,
        parameters=parameters,
        sampling=sampling,
        mixtures=mixtures,
        textures=textures,
        texture=texture,
        vessel_voxels=vessel_voxels[inside],
        vessel_shares=vessel_shares[inside],
        shown=shown,
    )


def high_field(head: LabelHead, config: HeadsConfig, rng: np.random.Generator) -> tuple[Volume, dict[str, Any]]:
    """Measure a head with a T1-weighted sequence at 3 T: contrast, coil sensitivity, blur and Rician noise.

    Returns:
        The volume `(X, Y, Z)` float32 on the high-field grid, and `HighScan.parameters`.
    """
    scan = draw_high_scan(config, rng)
    volume = scan.measure(head.render(scan.signals, rng), rng)
    np.multiply(volume.voxels, head.shown, out=volume.voxels)
    if scan.parameters["black_air"]:
        flesh = head.labels > 0
        flesh.reshape(-1)[head.sampling.edges] = True
        np.multiply(volume.voxels, flesh, out=volume.voxels)
    return volume, scan.parameters


def low_field(
    head: LabelHead, config: PhysicsConfig, rng: np.random.Generator, geometry: GeometryConfig | None = None
) -> tuple[Volume, dict[str, Any]]:
    """Measure a head with a T1-weighted sequence at 64 mT.

    Args:
        head: the head.
        config: ranges of the scanner.
        rng: generator that draws everything.
        geometry: the scan lies on its low-field grid. By default, the grid is drawn too, and covers that of the head.

    Returns:
        The magnitude `(I, J, K)` float32 on the acquired grid, and everything that was drawn, as plain values.
    """
    spacing_mm, shape = (geometry.low_spacing_mm, geometry.low_shape) if geometry else (None, None)
    acquisition = draw_acquisition(config, RENDERED_CONTRAST, rng, spacing_mm)
    signal = head.render(tissue_signals(acquisition.sequence, acquisition.relaxations), rng)
    return acquire(signal, acquisition, rng, shape), acquisition.to_tree()


def _draw_parameters(config: HeadsConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Draw what describes a head in a few numbers, rounded to the recorded precision."""

    def draw(limits: Range) -> float:
        return round(float(rng.uniform(*limits)), 4)

    most_deg = draw(config.rotation_deg)
    turns = rng.uniform(-most_deg, most_deg, 3).round(3)
    return {
        "scale": tuple(draw(config.scale) for _ in range(3)),
        "rotation_deg": tuple(map(float, turns)),
        "coarse_rms_mm": draw(config.coarse_rms_mm),
        "fine_rms_mm": draw(config.fine_rms_mm),
        "mirrored": bool(rng.random() < config.mirrored_rate),
        "stripped": bool(rng.random() < config.stripped_rate),
        "stripped_mm": draw((1.5, 5.0)),
        "defaced": bool(rng.random() < config.defaced_rate),
        "cut": bool(rng.random() < config.cut_rate),
        "fat_mm": draw(config.fat_mm),
        "skin_mm": draw(SKIN_MM),
        "fat_share": draw(FAT_SHARE),
        "muscle_share": draw(MUSCLE_SHARE),
        "label_spread": draw(config.label_spread),
        "texture": draw(config.texture),
        "num_vessels": round(draw(config.vessels)),
    }


def _hide(
    sampling: Sampling, kinds: tuple[LabelClass, ...], grid: TemplateGrid, view: View, parameters: dict[str, Any]
) -> tuple[Sampling, NDArray[np.bool_]]:
    """Make air of what lies outside the field of view, and of what skull stripping or defacing removes.

    Returns:
        The rest of the head, and `shown` of `LabelHead`.
    """
    shown = np.zeros(grid.shape, np.bool_)
    shown[view.box] = True
    if parameters["defaced"]:
        brain = np.array([kind.structure.is_brain for kind in kinds])[sampling.centres]
        shown &= view.behind_face(grid, brain)
    if parameters["stripped"]:
        kept = [_is_kept(kind, parameters["stripped_mm"]) for kind in kinds]
        places = np.where(kept, np.arange(len(kinds)), 0).astype(sampling.centres.dtype)
        sampling = Sampling(places[sampling.centres], sampling.edges, places[sampling.samples])
        shown &= sampling.centres > 0
    centres = np.where(shown, sampling.centres, sampling.centres.dtype.type(0))
    kept_edges = shown.reshape(-1)[sampling.edges]
    return Sampling(centres, sampling.edges[kept_edges], sampling.samples[:, kept_edges]), shown


def _is_kept(kind: LabelClass, reach_mm: float) -> bool:
    """Return whether skull stripping keeps a class: the brain, and fluid near it."""
    if kind.structure.layers == "brain":
        return kind.layer_mm is not None and kind.layer_mm < reach_mm
    return kind.structure.is_brain
