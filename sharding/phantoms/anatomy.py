"""Head phantoms: deform the MNI152 template, assign contrasts, and measure the head at high and at low field.

All functions are pure; randomness comes from a generator, or from parameters drawn from one. World coordinates are in
mm, with the origin at the centre of the field of view and axes that point right, forward and up.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from upfield.imaging.resample import linear_weights
from upfield.sharding.physics.point_spread import tukey
from upfield.sharding.physics.smooth_field import BIAS_KNOT_MM, cubic_spline

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Centre of the field of view in MNI space, chosen so that the head with its scalp fits in 179 x 221 x 200 mm.
VIEW_CENTRE_MM = (0.0, -17.0, 0.0)
HULL_CLOSING_MM = 12.0
# The brain reaches at most this far beyond the hull, which is smoothed and so cuts off a little of it.
HULL_MARGIN_MM = 4.0
# Ellipsoids in MNI mm, (centre, half axes), that replace the neck and the face, which the template lacks.
STRIPPED_MM = (((0.0, -40.0, -100.0), (42.0, 42.0, 60.0)), ((0.0, 32.0, -65.0), (44.0, 42.0, 48.0)))
COARSE_KNOT_MM = 55.0
FINE_KNOT_MM = 18.0
LEAST_JACOBIAN = 0.25


@dataclass(frozen=True)
class TemplateGrid:
    """A box of voxels whose centre is the origin of world space."""

    shape: tuple[int, int, int]
    """Voxels along each axis."""
    spacing_mm: tuple[float, float, float]
    """Voxel size along each axis."""

    def positions_mm(self, axis: int) -> F64:
        """Return the voxel centres along one axis, `(shape[axis],)` float64, in world mm."""
        steps = np.arange(self.shape[axis], dtype=np.float64)
        return (steps - steps.mean()) * self.spacing_mm[axis]

    @property
    def affine(self) -> F64:
        """Voxel index -> world mm, `(4, 4)`."""
        affine = np.diag(np.array((*self.spacing_mm, 1.0), dtype=np.float64))
        affine[:3, 3] = [self.positions_mm(axis)[0] for axis in range(3)]
        return affine


class Template(NamedTuple):
    """The MNI152 head as fields `(I, J, K)` float32."""

    grey: F32
    """Fraction of grey matter, 0..1."""
    white: F32
    """Fraction of white matter, 0..1."""
    brain: F32
    """1 in the brain, ventricles included, and 0 elsewhere."""
    texture: F32
    """T1 signal that the tissue fractions do not explain, in units of the brightest voxel; 0 outside the brain."""
    hull_mm: F32
    """Distance outwards from the smooth hull of the brain, about 0 inside."""
    head_mm: F32
    """Distance outwards from the union of hull, neck and face."""
    affine: F64
    """`(4, 4)`, voxel index -> MNI mm."""


class Tissues(NamedTuple):
    """One subject's head on a grid: tissue fractions `(I, J, K)` float32 in 0..1, and the texture as in `Template`."""

    white: F32
    grey: F32
    fluid: F32
    skull: F32
    muscle: F32
    scalp: F32
    texture: F32


@dataclass(frozen=True)
class Morphology:
    """How one subject's head differs from the template."""

    scale: tuple[float, float, float]
    """Size relative to the template along each axis."""
    rotation_deg: tuple[float, float, float]
    """Rotations about the three axes, in order."""
    coarse_rms_mm: float
    """Displacement of lobes along each axis, before the deformation is reduced until it has no folds."""
    fine_rms_mm: float
    """Displacement of gyri along each axis, before the same reduction."""
    atrophy: float
    """Weight of fluid relative to tissue; above 1 widens sulci and ventricles."""
    sharpness: float
    """Exponent on the tissue fractions. The template is a mean of 152 heads and therefore blurred; values above 1 make
    borders as sharp as in one head."""
    fluid_mm: float
    """Thickness of the fluid between the hull of the brain and the skull."""
    skull_mm: float
    """Thickness of the skull."""
    scalp_mm: float
    """Thickness of the scalp."""


class Contrast(NamedTuple):
    """Signal of each tissue relative to white matter at high field, and the gain of the texture."""

    white: float
    grey: float
    fluid: float
    skull: float
    muscle: float
    scalp: float
    texture: float


@dataclass(frozen=True)
class Scanner:
    """Properties of a scanner, at either field."""

    log_bias_rms: float
    """Root mean square of the logarithm of the smooth coil sensitivity that multiplies the signal."""
    snr: float
    """Signal of white matter, divided by the standard deviation of the noise in each of the two receiver channels."""
    units: float
    """Value, in scanner units, of a signal of 1."""


@dataclass(frozen=True)
class Blur:
    """Blur of the low field, deliberately different from the Gaussian blur of the synthetic pairs."""

    slab_mm: float
    """Thickness over which one slice averages; if it exceeds the slice distance, neighbours overlap."""
    cutoff: float
    """Highest in-plane frequency measured, relative to the highest that the low-field voxels can represent."""
    taper: float
    """Fraction of the measured frequencies that a Tukey window damps, above 0; smaller values cause more ringing."""


def load_template(stride: int = 1) -> Template:
    """Load the MNI152 template that nilearn ships.

    Args:
        stride: keep every `stride`-th voxel; 1 keeps the 1 mm grid of `(197, 233, 189)`.
    """
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    images = [load(resolution=1) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    t1, grey, white = (
        np.asarray(image.dataobj, dtype=np.float32)[::stride, ::stride, ::stride].copy() for image in images
    )
    affine = np.asarray(images[0].affine, dtype=np.float64) @ np.diag((stride, stride, stride, 1.0))
    return make_template(t1, grey, white, affine)


def make_template(t1: F32, grey: F32, white: F32, affine: F64) -> Template:
    """Compute the fields that phantoms are made from.

    Args:
        t1: `(I, J, K)` skull-stripped T1 signal, 0..1, 0 outside the brain.
        grey: `(I, J, K)` fraction of grey matter, 0..1.
        white: `(I, J, K)` fraction of white matter, 0..1.
        affine: `(4, 4)`, voxel index -> MNI mm, one spacing for all axes.
    """
    brain = np.asarray(ndimage.binary_fill_holes(t1 > 0))
    shares = np.stack([grey[brain], white[brain], 1 - grey[brain] - white[brain]], axis=1, dtype=np.float64)
    levels = np.linalg.solve(shares.T @ shares, shares.T @ t1[brain])
    texture = np.zeros_like(t1)
    texture[brain] = t1[brain] - shares @ levels
    return Template(grey, white, brain.astype(np.float32), texture, *shell_distances_mm(brain, affine), affine)


def shell_distances_mm(brain: NDArray[np.bool_], affine: F64) -> tuple[F32, F32]:
    """Compute the distance outwards from the hull of the brain, and from the union of hull, neck and face.

    Args:
        brain: `(I, J, K)` mask.
        affine: `(4, 4)`, voxel index -> MNI mm, one spacing for all axes.

    Returns:
        `hull_mm` and `head_mm` of `Template`, `(I, J, K)` float32.
    """
    # The skull is smooth, so every second voxel suffices, in an eighth of the time.
    step = 2 if affine[0, 0] < 2 else 1
    spacing_mm = affine[0, 0] * step
    margin = math.ceil(HULL_CLOSING_MM / spacing_mm) + 1
    mask = np.pad(brain[::step, ::step, ::step], margin)
    grown = _distance_mm(mask, spacing_mm) <= HULL_CLOSING_MM
    hull = _distance_mm(~grown, spacing_mm) > HULL_CLOSING_MM
    places_mm = np.ix_(*((np.arange(mask.shape[axis]) - margin) * spacing_mm + affine[axis, 3] for axis in range(3)))
    head = hull.copy()
    for centre, half in STRIPPED_MM:
        head |= sum(((place - c) / h) ** 2 for place, c, h in zip(places_mm, centre, half, strict=True)) < 1
    hats = [
        linear_weights(margin + np.arange(size) / step, coarse)
        for size, coarse in zip(brain.shape, mask.shape, strict=True)
    ]
    smooth = (ndimage.gaussian_filter(_distance_mm(inner, spacing_mm), 3.0 / spacing_mm) for inner in (hull, head))
    hull_mm, head_mm = (apply_along_axes(distance, hats) for distance in smooth)
    return hull_mm, head_mm


def _distance_mm(mask: NDArray[np.bool_], spacing_mm: float) -> F32:
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing_mm), dtype=np.float32)


def apply_along_axes(volume: NDArray[np.floating], matrices: list[F64]) -> F32:
    """Apply one matrix `(A, I)`, `(B, J)`, `(C, K)` along each axis of `(I, J, K)`; return `(A, B, C)` float32."""
    first, second, third = (np.asarray(matrix, dtype=np.float32) for matrix in matrices)
    inner = second @ (np.asarray(volume, dtype=np.float32) @ third.T)
    return np.asarray(np.tensordot(first, inner, axes=(1, 0)), dtype=np.float32)


def smooth_field(generator: np.random.Generator, grid: TemplateGrid, knot_mm: float) -> F32:
    """Draw a smooth field `(I, J, K)` float32 of mean square 1: a cubic B-spline with knots `knot_mm` apart."""
    bases = []
    for axis in range(3):
        position = (grid.positions_mm(axis) + grid.shape[axis] * grid.spacing_mm[axis] / 2) / knot_mm
        knots = np.arange(-1, math.ceil(position[-1]) + 2)
        bases.append(cubic_spline(abs(position[:, None] - knots)))
    coefficients = generator.standard_normal([basis.shape[1] for basis in bases])
    field = apply_along_axes(coefficients, bases)
    return field / np.float32(math.sqrt(np.mean(np.square(field))))


def displace(generator: np.random.Generator, grid: TemplateGrid, morphology: Morphology) -> F32:
    """Draw the displacement of one subject, and shrink it until it has no folds.

    Returns:
        `(3, I, J, K)` float32 in mm. The Jacobian determinant of position plus displacement exceeds `LEAST_JACOBIAN` in
        every voxel.
    """
    field = np.empty((3, *grid.shape), np.float32)
    for component in field:
        component[:] = smooth_field(generator, grid, COARSE_KNOT_MM) * np.float32(morphology.coarse_rms_mm)
        component += smooth_field(generator, grid, FINE_KNOT_MM) * np.float32(morphology.fine_rms_mm)
        component -= component.mean()
    trace, minors, determinant = _invariants(field, grid.spacing_mm)
    amplitude = np.float32(1)
    while np.min(1 + amplitude * (trace + amplitude * (minors + amplitude * determinant))) <= LEAST_JACOBIAN:
        amplitude *= np.float32(0.95)
    return field * amplitude


def _invariants(field: F32, spacing_mm: tuple[float, float, float]) -> tuple[F32, F32, F32]:
    """Compute trace t, sum of principal minors m and determinant d of the gradient G of a field `(3, I, J, K)`.

    They determine det(1 + a G) = 1 + a(t + a(m + a d)).
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (np.gradient(component, *spacing_mm) for component in field)
    first = yy * zz - yz * zy
    minors = first + (xx * zz - xz * zx) + (xx * yy - xy * yx)
    determinant = xx * first - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)
    return xx + yy + zz, minors, determinant


def template_indices(field: F32, grid: TemplateGrid, morphology: Morphology, affine: F64) -> F32:
    """Compute the template index of each voxel of a subject's grid.

    Args:
        field: displacement `(3, I, J, K)` in mm.
        grid: grid of the subject.
        morphology: scale and rotation of the subject.
        affine: affine of the template `(4, 4)`, voxel index -> MNI mm.

    Returns:
        `(3, I, J, K)` float32 indices into the template; some lie outside it.
    """
    linear = Rotation.from_euler("xyz", morphology.rotation_deg, degrees=True).as_matrix() @ np.diag(
        1 / np.asarray(morphology.scale)
    )
    inverse = np.linalg.inv(affine)
    matrix = (inverse[:3, :3] @ linear).astype(np.float32)
    offset = inverse[:3, :3] @ VIEW_CENTRE_MM + inverse[:3, 3]
    places = field.copy()
    for axis, steps in enumerate(np.ix_(*(grid.positions_mm(axis) for axis in range(3)))):
        places[axis] += steps.astype(np.float32)
    return np.tensordot(matrix, places, axes=1) + offset.astype(np.float32)[:, None, None, None]


def make_tissues(
    generator: np.random.Generator, grid: TemplateGrid, template: Template, morphology: Morphology
) -> Tissues:
    """Deform the template into one subject's head, as tissue fractions `(I, J, K)` on `grid`."""
    indices = template_indices(displace(generator, grid, morphology), grid, morphology, template.affine)
    hull_mm, head_mm = _sample(template.hull_mm, indices), _sample(template.head_mm, indices)
    inside = hull_mm < HULL_MARGIN_MM
    indices = indices[:, inside]
    sources = (template.grey, template.white, template.brain, template.texture)
    grey, white, brain, texture = (_sample(source, indices) for source in sources)
    fluid = morphology.atrophy * np.maximum(brain - grey - white, 0) ** morphology.sharpness
    grey, white = grey**morphology.sharpness, white**morphology.sharpness
    share = brain / np.maximum(grey + white + fluid, np.float32(1e-6))
    grey, white, fluid, texture, brain = (
        _scatter(values, inside) for values in (grey * share, white * share, fluid * share, texture, brain)
    )
    skull_mm = morphology.fluid_mm + morphology.skull_mm
    hull = np.maximum(_within(hull_mm, morphology.fluid_mm), brain)
    bone = np.maximum(_within(hull_mm, skull_mm), hull)
    flesh = np.maximum(_within(head_mm, skull_mm), bone)
    skin = np.maximum(_within(head_mm, skull_mm + morphology.scalp_mm), flesh)
    return Tissues(white, grey, fluid + hull - brain, bone - hull, flesh - bone, skin - flesh, texture)


def _sample(field: F32, indices: F32) -> F32:
    return np.asarray(ndimage.map_coordinates(field, indices, order=1, mode="nearest", output=np.float32), np.float32)


def _scatter(values: NDArray[np.floating], inside: NDArray[np.bool_]) -> F32:
    field = np.zeros(inside.shape, np.float32)
    field[inside] = values
    return field


def _within(depth_mm: F32, edge_mm: float) -> F32:
    """Return 1 up to the depth `edge_mm` and 0 beyond; a 1 mm ramp between them models partial volumes."""
    return np.clip(np.float32(edge_mm + 0.5) - depth_mm, 0, 1, dtype=np.float32)


def signal(tissues: Tissues, contrast: Contrast) -> F32:
    """Compute the noise-free signal `(I, J, K)` float32; white matter at high field is about 1."""
    total = tissues[0] * np.float32(contrast[0])
    for share, level in zip(tissues[1:], contrast[1:], strict=True):
        total += share * np.float32(level)
    return np.maximum(total, 0)


def blur_lines(coarse: TemplateGrid, fine: TemplateGrid, blur: Blur) -> list[F64]:
    """Compute the blur of the low field: a matrix `(coarse, fine)` per axis, whose rows sum to 1.

    In plane, the scanner measures a Tukey-windowed part of k-space. Through plane, it averages a slab.
    """
    in_plane = [_truncation(coarse, fine, axis, blur) for axis in (0, 1)]
    distance_mm = abs(coarse.positions_mm(2)[:, None] - fine.positions_mm(2))
    slab = np.clip((blur.slab_mm / 2 - distance_mm) / fine.spacing_mm[2] + 0.5, 0, 1)
    return [matrix / matrix.sum(axis=1, keepdims=True) for matrix in (*in_plane, slab)]


def _truncation(coarse: TemplateGrid, fine: TemplateGrid, axis: int, blur: Blur) -> F64:
    """Compute the point spread `(coarse, fine)` of a Tukey-windowed k-space, the Fourier integral of the window."""
    frequency = (np.arange(128) + 0.5) / 128
    window = tukey(frequency, blur.taper)
    distance_mm = coarse.positions_mm(axis)[:, None] - fine.positions_mm(axis)
    highest_per_mm = blur.cutoff / (2 * coarse.spacing_mm[axis])
    return np.cos(2 * np.pi * highest_per_mm * distance_mm[..., None] * frequency) @ window


def add_rician(generator: np.random.Generator, clean: F32, noise_std: float) -> F32:
    """Add Rician noise: compute the magnitude of two noisy receiver channels, sqrt((signal + n1)^2 + n2^2).

    Args:
        generator: source of the noise.
        clean: signal `(I, J, K)` float32.
        noise_std: standard deviation of n1 and n2, in units of the signal.

    Returns:
        `(I, J, K)` float32, at least 0, not clipped at the top.
    """
    std = np.float32(noise_std)
    real = clean + std * generator.standard_normal(clean.shape, dtype=np.float32)
    return np.hypot(real, std * generator.standard_normal(clean.shape, dtype=np.float32))


def measure(
    generator: np.random.Generator,
    tissues: Tissues,
    grid: TemplateGrid,
    contrast: Contrast,
    scanner: Scanner,
    lines: list[F64] | None = None,
) -> F32:
    """Measure a head as a scanner does: contrast, coil sensitivity, blur, noise, units.

    Args:
        generator: source of the sensitivity and the noise.
        tissues: the head, fields `(I, J, K)`.
        grid: grid of the head.
        contrast: signal of each tissue.
        scanner: coil sensitivity, noise and units.
        lines: blur from `blur_lines`; without it, the scan has the grid of the head and no blur.

    Returns:
        Float32 in scanner units, `(I, J, K)` without `lines`, otherwise on the coarse grid of `lines` `(A, B, C)`.
    """
    sensitivity = np.exp(np.float32(scanner.log_bias_rms) * smooth_field(generator, grid, BIAS_KNOT_MM))
    clean = signal(tissues, contrast) * sensitivity
    measured = clean if lines is None else apply_along_axes(clean, lines)
    return add_rician(generator, measured, contrast.white / scanner.snr) * np.float32(scanner.units)
