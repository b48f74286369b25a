"""Draw the parameters of one phantom subject and write its files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.phantoms.anatomy import (
    Blur,
    Contrast,
    Morphology,
    Scanner,
    Template,
    TemplateGrid,
    blur_lines,
    make_tissues,
    measure,
)


@dataclass(frozen=True)
class PhantomSubject:
    """Parameters drawn for one subject, besides its random fields."""

    morphology: Morphology
    high_contrast: Contrast
    high_scanner: Scanner
    low_contrast: Contrast
    low_scanner: Scanner
    low_blur: Blur


@dataclass(frozen=True)
class PhantomTask:
    """One subject to write."""

    folder: Path
    """Folder in which `real` and `IXI-T1` are made."""
    seed: int
    """Seed of the cohort."""
    number: int
    """Number of the subject within the cohort, from 0; with the seed, it determines everything that is drawn."""
    num_pairs: int
    """Subjects below this number become real pairs, the others IXI-like volumes."""
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    """The two grids."""


def write_subject(task: PhantomTask, template: Template) -> None:
    """Make one subject and write its files: slices of both fields, or one IXI-like volume."""
    grid = TemplateGrid(task.geometry.high_shape, task.geometry.high_spacing_mm)
    low_grid = TemplateGrid(task.geometry.low_shape, task.geometry.low_spacing_mm)
    generator = np.random.default_rng([task.seed, task.number])
    subject = draw_subject(generator)
    tissues = make_tissues(generator, grid, template, subject.morphology)
    high = measure(generator, tissues, grid, subject.high_contrast, subject.high_scanner)
    if task.number >= task.num_pairs:
        name = ixi_name(task.number - task.num_pairs)
        write_ixi(task.folder / "IXI-T1" / f"{name}.nii.gz", high, grid.affine)
        return
    lines = blur_lines(low_grid, grid, subject.low_blur)
    low = measure(generator, tissues, grid, subject.low_contrast, subject.low_scanner, lines)
    name = real_name(task.number)
    write_slices(task.folder / "real" / "low", name, low, low_grid.affine)
    write_slices(task.folder / "real" / "high", name, high, grid.affine)


def real_name(number: int) -> str:
    """Return the id of a pair's subject, counted from 0."""
    return f"sub-{number + 1:02d}"


def ixi_name(number: int) -> str:
    """Return the name of an IXI-like volume, counted from 0; its id is what stands before the first hyphen."""
    return f"IXI9{number + 1:02d}-PH-{1001 + number}-T1"


def draw_subject(generator: np.random.Generator) -> PhantomSubject:
    """Draw one subject's parameters: white > grey > fluid at both fields, as in T1, with less contrast at low field."""

    def draw(least: float, most: float) -> float:
        return float(generator.uniform(least, most))

    low_white = draw(0.7, 0.78)
    return PhantomSubject(
        morphology=Morphology(
            scale=(draw(0.93, 1.03), draw(0.93, 1.03), draw(0.93, 1.03)),
            rotation_deg=(draw(-5, 5), draw(-5, 5), draw(-5, 5)),
            coarse_rms_mm=draw(4.0, 5.0),
            fine_rms_mm=draw(1.0, 1.6),
            atrophy=draw(0.7, 1.8),
            sharpness=draw(1.6, 2.2),
            fluid_mm=draw(1.5, 2.5),
            skull_mm=draw(4.0, 6.0),
            scalp_mm=draw(3.5, 5.5),
        ),
        high_contrast=Contrast(
            white=1.0,
            grey=draw(0.62, 0.73),
            fluid=draw(0.18, 0.28),
            skull=draw(0.05, 0.1),
            muscle=draw(0.35, 0.5),
            scalp=draw(1.0, 1.15),
            texture=draw(0.8, 1.1),
        ),
        high_scanner=Scanner(log_bias_rms=draw(0.05, 0.08), snr=draw(40, 60), units=draw(400, 1200)),
        low_contrast=Contrast(
            white=low_white,
            grey=low_white * draw(0.76, 0.83),
            fluid=draw(0.14, 0.22),
            skull=draw(0.04, 0.08),
            muscle=draw(0.25, 0.4),
            scalp=draw(0.85, 1.0),
            texture=draw(0.4, 0.6),
        ),
        low_scanner=Scanner(log_bias_rms=draw(0.1, 0.15), snr=draw(12, 20), units=draw(1000, 4000)),
        low_blur=Blur(slab_mm=draw(5.0, 6.0), cutoff=draw(0.8, 1.0), taper=draw(0.2, 0.5)),
    )


def write_slices(folder: Path, subject: str, voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    """Write each axial slice of a volume to a file of its own, with an affine that places it in world space.

    Args:
        folder: folder of the files, created if it is missing.
        subject: first part of the file names.
        voxels: `(I, J, K)` in scanner units, RAS+ order.
        affine: `(4, 4)`, voxel index -> world mm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(voxels.shape[2]):
        placed = affine.copy()
        placed[:3, 3] += index * affine[:3, 2]
        write_volume(folder / f"{subject}_slice_{index:03d}.nii.gz", voxels[:, :, index : index + 1], placed)


def write_ixi(path: Path, voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    """Write a volume with the axes of the IXI data set: posterior, superior, right.

    Args:
        path: the file; its folder is created if it is missing.
        voxels: `(I, J, K)` in scanner units, RAS+ order.
        affine: `(4, 4)`, voxel index -> world mm.
    """
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PSR"))
    write_volume(path, apply_orientation(voxels, turn), affine @ inv_ornt_aff(turn, voxels.shape))


def write_volume(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a volume as whole numbers.

    Args:
        path: the file; its folder is created if it is missing.
        voxels: `(I, J, K)`, rounded to int16.
        affine: `(4, 4)`, voxel index -> world mm.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # nibabel compresses at level 1, which is fast, and writes no time into the file: equal voxels make equal bytes.
    image = Nifti1Image(np.rint(voxels).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.to_filename(path)
