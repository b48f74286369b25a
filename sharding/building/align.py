"""Register the high field of a pair to its low field with a rigid motion, because the fields come from two scanners.

The low field is never interpolated, and the high field only once. SimpleITK receives images in
RAS+ coordinates. It applies its own LPS convention only to files that it reads or writes, so its transforms are in RAS
too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from upfield.common.errors import InputError
from upfield.imaging.air import Air, estimate_air
from upfield.imaging.volume import Volume

BINS = 32
# Levels of the search: approximate voxel size, and blur (standard deviation).
COARSE_MM, COARSE_BLUR_MM = 4.0, 3.0
FINE_MM, FINE_BLUR_MM = 2.0, 1.5
# Number of voxels, inside and outside the mask, that the search draws to compute the similarity.
NUM_SAMPLES = 20_000
# The edge of the head determines its position best. Farther out, there is only noise.
MASK_MARGIN_MM = 8.0
# The recorded matrix is the one that is applied; rounding it to 1e-6 moves a voxel 100 mm away by 1e-4 mm.
MATRIX_DECIMALS = 6


@dataclass(frozen=True)
class Alignment:
    """A rigid motion of the high field, and the similarity of the two fields before and after it."""

    matrix: tuple[tuple[float, ...], ...]
    """`(4, 4)`, world coordinates of the high-field file (mm, RAS) -> world coordinates of the low-field file."""
    rotation_deg: tuple[float, float, float]
    """Rotation vector, with components along right, anterior and superior; its length is the angle."""
    translation_mm: tuple[float, float, float]
    """Displacement of the head's centre, in RAS."""
    similarity_before: float
    """Mattes mutual information (nats, larger is better) before the motion."""
    similarity_after: float
    """Mattes mutual information (nats, larger is better) after the motion."""

    def to_tree(self) -> dict[str, Any]:
        """Return the motion and the similarities as plain values."""
        return {
            "matrix": [list(row) for row in self.matrix],
            "rotation_deg": list(self.rotation_deg),
            "translation_mm": list(self.translation_mm),
            "similarity_before": self.similarity_before,
            "similarity_after": self.similarity_after,
        }


def register(low: Volume, high: Volume, seed: int) -> Alignment:
    """Find the rigid motion that aligns the high field with the low field.

    The search maximises Mattes mutual information, first at a coarse and then at a fine resolution. It has three
    starting positions: no motion, the two centres of the head aligned, and the two tops of the head aligned, which is
    the right one if only one field shows the neck. The best coarse result is refined. It is used only if it is better
    than no motion.

    Args:
        low: the low field, RAS+, which stays fixed.
        high: the high field, RAS+.
        seed: seed for drawing the voxels at which the similarity is computed.

    Returns:
        The motion; the same input and seed give the same bits, on any number of cores.

    Raises:
        InputError: SimpleITK is not installed.
    """
    sitk = _simpleitk()
    fixed, moving = _Head(_scaled(low)), _Head(_scaled(_reduced(high, FINE_MM)))
    # For seed 0, SimpleITK would draw a seed from the clock.
    sampling_seed = seed % (2**32 - 1) + 1
    with _single_thread(sitk):
        coarse = _Level.of(sitk, fixed, moving, COARSE_MM, COARSE_BLUR_MM)
        motions = [coarse.descend(start, sampling_seed) for start in _starts(sitk, fixed, moving)]
        best = coarse.refine(max(motions, key=coarse.similarity), 1.0, sampling_seed)
        fine = _Level.of(sitk, fixed, moving, None, FINE_BLUR_MM)
        identity = sitk.Euler3DTransform()
        motion = max(identity, fine.refine(best, 0.25, sampling_seed), key=fine.similarity)
        before, after = fine.similarity(identity), fine.similarity(motion)
    return _alignment(motion, fixed.centre_mm, before, after)


def resample_aligned(
    high: Volume, padding: float, alignment: Alignment, low: Volume, cover: Literal["low", "high"]
) -> Volume:
    """Move the high field and interpolate it once, by cubic B-spline, on a grid parallel to that of the low field.

    Args:
        high: the high field, RAS+.
        padding: value for voxels outside the field of view.
        alignment: the motion of the high field, from `register`.
        low: the low field, RAS+.
        cover: with `high`, the grid holds the whole moved high field, corners included, at its own spacing. With `low`,
            the grid's corner voxels lie on those of the low field, as `fit: resize` assumes, at nearly the high field's
            spacing.

    Returns:
        Voxels `(I, J, K)` float32 within the high field's own range, and the affine that maps them to the low field's
        world coordinates.

    Raises:
        InputError: SimpleITK is not installed.
    """
    sitk = _simpleitk()
    matrix = np.array(alignment.matrix)
    shape, affine = _grid(high, matrix, low, cover)
    darkest, brightest = high.voxels.min(), high.voxels.max()
    back = np.linalg.inv(matrix)
    transform = sitk.AffineTransform(back[:3, :3].ravel().tolist(), back[:3, 3].tolist())
    origin, spacing, direction = _geometry(affine)
    with _single_thread(sitk):
        # This is as fast as scipy.ndimage, whose constant mode would cut off the outer half of the border voxels.
        moved = sitk.Resample(
            _image(sitk, high),
            [int(size) for size in shape],
            transform,
            sitk.sitkBSpline3,
            origin,
            spacing,
            direction,
            padding,
            sitk.sitkFloat32,
        )
    voxels = np.ascontiguousarray(sitk.GetArrayViewFromImage(moved).T)
    return Volume(np.clip(voxels, darkest, brightest, out=voxels), affine, high.axcodes)


def _grid(
    high: Volume, matrix: NDArray[np.float64], low: Volume, cover: Literal["low", "high"]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Compute the shape `(3,)` and the affine `(4, 4)` of the grid that the high field is moved to."""
    axes = low.affine[:3, :3] / low.spacing_mm
    held, volume = (low.affine, low) if cover == "low" else (matrix @ high.affine, high)
    num_held = np.array(volume.voxels.shape)
    spacing_mm = high.spacing_mm
    if cover == "low":
        span_mm = (num_held - 1) * low.spacing_mm
        shape = np.maximum(np.round(span_mm / spacing_mm).astype(np.int64) + 1, 2)
        spacing_mm = span_mm / (shape - 1)
    else:
        extent_vox = np.abs(np.linalg.inv(axes) @ held[:3, :3] * num_held).sum(axis=1) / spacing_mm
        # A rounding error of up to a thousandth of a voxel must not add a voxel.
        shape = np.maximum(np.ceil(extent_vox - 1e-3), 1).astype(np.int64)
    centre_mm = held[:3, :3] @ ((num_held - 1) / 2) + held[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
    return shape, affine


class _Head:
    """A volume, with the mask and the position of its head."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    @cached_property
    def air(self) -> Air:
        """The background of the volume."""
        return estimate_air(self.volume.voxels)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """The largest bright region, holes filled, `(I, J, K)`; all voxels if there is no such region."""
        smooth = _blurred(self.volume, 3.0).voxels
        regions, num_regions = ndimage.label(ndimage.binary_fill_holes(smooth > self.air.threshold))  # pyright: ignore[reportGeneralTypeIssues]
        if num_regions == 0:
            return np.ones(smooth.shape, dtype=bool)
        return regions == 1 + np.argmax(np.bincount(regions.ravel())[1:])

    @cached_property
    def neighbourhood(self) -> NDArray[np.bool_]:
        """The head and `MASK_MARGIN_MM` around it, `(I, J, K)`."""
        away_mm = np.asarray(ndimage.distance_transform_edt(~self.mask, sampling=self.volume.spacing_mm))
        return away_mm <= MASK_MARGIN_MM

    @cached_property
    def _points_mm(self) -> NDArray[np.float64]:
        return np.argwhere(self.mask) @ self.volume.affine[:3, :3].T + self.volume.affine[:3, 3]

    @property
    def centre_mm(self) -> NDArray[np.float64]:
        """The head's centre, world mm, `(3,)`."""
        return self._points_mm.mean(axis=0)

    @property
    def top_mm(self) -> float:
        """The height of the head's highest point, world mm."""
        return float(self._points_mm[:, 2].max())


@dataclass(frozen=True)
class _Level:
    """Both fields at one resolution, as SimpleITK images with RAS coordinates."""

    sitk: Any
    low: Any
    mask: Any
    high: Any
    padding: float

    @classmethod
    def of(cls, sitk: Any, fixed: _Head, moving: _Head, voxel_mm: float | None, blur_mm: float) -> "_Level":
        low, high = _blurred(fixed.volume, blur_mm), _blurred(moving.volume, blur_mm)
        mask = Volume(fixed.neighbourhood.astype(np.float32), low.affine)
        if voxel_mm:
            low, mask, high = (_reduced(volume, voxel_mm) for volume in (low, mask, high))
        inside = _image(sitk, mask) > 0.5
        return cls(sitk, _image(sitk, low), inside, _image(sitk, high), moving.air.level)

    def descend(self, start: Any, seed: int) -> Any:
        """Improve a transform (low world -> high world) by gradient descent, which is slow over the last degrees."""
        method = self._measure(seed)
        method.SetOptimizerAsRegularStepGradientDescent(4.0, 0.04, 60, 0.7, 1e-6)
        return self._run(method, start)

    def refine(self, start: Any, step_mm: float, seed: int) -> Any:
        """Search line by line (Powell), because a nearly round head makes a narrow valley in which gradients stall."""
        method = self._measure(seed)
        method.SetOptimizerAsPowell(10, 20, step_mm, 0.01, 1e-4)
        return self._run(method, start)

    def _run(self, method: Any, start: Any) -> Any:
        transform = self.sitk.Euler3DTransform(start)
        # Rotations are scaled by how far they move the voxels.
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(self.low, self.high)
        except RuntimeError:
            # The fields overlap too little for a gradient. Return the start, which is rejected for its low similarity.
            return start
        return transform

    def similarity(self, transform: Any) -> float:
        """Compute the mutual information over all masked voxels; outside its field of view, the high field is air."""
        moved = self.sitk.Resample(self.high, self.low, transform, self.sitk.sitkLinear, self.padding)
        method = self._measure()
        method.SetInitialTransform(self.sitk.Euler3DTransform())
        try:
            # The similarity is not more precise than six decimals. Adding zero turns -0.0 into 0.0.
            return round(-float(method.MetricEvaluate(self.low, moved)), 6) + 0.0
        except RuntimeError:
            return 0.0

    def _measure(self, seed: int | None = None) -> Any:
        method = self.sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricFixedMask(self.mask)
        method.SetInterpolator(self.sitk.sitkLinear)
        if seed is not None:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(min(1.0, NUM_SAMPLES / self.low.GetNumberOfPixels()), seed)
        return method


def _starts(sitk: Any, fixed: _Head, moving: _Head) -> list[Any]:
    """Return the three starting transforms, low world -> high world, which rotate about the low field's head."""
    shift_mm = moving.centre_mm - fixed.centre_mm
    top_mm = np.array([shift_mm[0], shift_mm[1], moving.top_mm - fixed.top_mm])
    starts = []
    for translation_mm in (np.zeros(3), shift_mm, top_mm):
        start = sitk.Euler3DTransform()
        start.SetCenter(fixed.centre_mm.tolist())
        start.SetTranslation(translation_mm.tolist())
        starts.append(start)
    return starts


def _alignment(motion: Any, centre_mm: NDArray[np.float64], before: float, after: float) -> Alignment:
    low_to_high = np.eye(4)
    low_to_high[:3, :3] = np.reshape(motion.GetMatrix(), (3, 3))
    low_to_high[:3, 3] = motion.TransformPoint((0.0, 0.0, 0.0))
    # Adding zero turns -0.0 into 0.0.
    matrix = np.round(np.linalg.inv(low_to_high), MATRIX_DECIMALS) + 0.0
    rotation = np.round(Rotation.from_matrix(matrix[:3, :3]).as_rotvec(degrees=True), 4) + 0.0
    moved_mm = np.round(centre_mm - motion.TransformPoint(centre_mm.tolist()), 4) + 0.0
    return Alignment(
        tuple(map(tuple, matrix.tolist())), tuple(rotation.tolist()), tuple(moved_mm.tolist()), before, after
    )


def _scaled(volume: Volume) -> Volume:
    """Clip to the percentiles 0.5 and 99.5, and scale to [0, 1]."""
    darkest, brightest = np.percentile(volume.voxels, (0.5, 99.5))
    if brightest <= darkest:
        darkest, brightest = volume.voxels.min(), volume.voxels.max()
    scaled = (np.clip(volume.voxels, darkest, brightest) - darkest) / (brightest - darkest)
    return Volume(scaled.astype(np.float32), volume.affine)


def _blurred(volume: Volume, sigma_mm: float) -> Volume:
    blurred = ndimage.gaussian_filter(volume.voxels, sigma_mm / volume.spacing_mm, truncate=3.0)
    return Volume(np.asarray(blurred, dtype=np.float32), volume.affine)


def _reduced(volume: Volume, voxel_mm: float) -> Volume:
    """Average blocks of voxels, so that the voxel size is about `voxel_mm` on each axis where it was smaller."""
    shape = np.array(volume.voxels.shape)
    factor = np.clip(np.floor(voxel_mm / volume.spacing_mm + 0.5), 1, shape).astype(int)
    (i, j, k), (a, b, c) = shape // factor, factor
    blocks = volume.voxels[: i * a, : j * b, : k * c].reshape(i, a, j, b, k, c)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((factor - 1) / 2)
    affine[:3, :3] *= factor
    return Volume(blocks.mean(axis=(1, 3, 5), dtype=np.float32), affine)


def _geometry(affine: NDArray[np.float64]) -> tuple[list[float], list[float], list[float]]:
    """Return the origin, spacing and direction of an affine `(4, 4)` for ITK, without a conversion to LPS."""
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    return affine[:3, 3].tolist(), spacing_mm.tolist(), (affine[:3, :3] / spacing_mm).ravel().tolist()


def _image(sitk: Any, volume: Volume) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels.T))
    origin, spacing, direction = _geometry(volume.affine)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


@contextmanager
def _single_thread(sitk: Any) -> Iterator[None]:
    """Limit ITK to one thread, because its sums depend on the number of threads; subjects run in parallel instead."""
    num_threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(num_threads)


def require_simpleitk() -> None:
    """Raise InputError if SimpleITK is not installed."""
    _simpleitk()


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            "align: rigid needs SimpleITK, which is not installed. Run pip install 'upfield[align]'."
        ) from error
    return SimpleITK
