"""Small scans, as files and as subjects, for tests of the preflight check."""

import gzip
from typing import Any

import nibabel as nib
import numpy as np

from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import Source, Subject
from upfield.sharding.configuration import GeometryConfig

# The scans here are as small as this grid, or finer.
GRIDS = GeometryConfig(high_shape=(4, 5, 6), high_spacing_mm=(1.5, 2, 3), average=True)
AFFINE = np.array([[1.5, 0, 0, -10], [0, 2, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]])


def problems_of(subjects, jobs=0):
    return preflight(subjects, jobs, GRIDS).problems


def noise(*shape):
    return np.random.default_rng(len(shape)).integers(0, 1000, shape).astype(np.int16)


def save(path, voxels=None, affine=AFFINE, kind: Any = nib.Nifti1Image, sform=None, **fields):
    """Write a file whose qform is `affine`; `sform` sets another sform, and `fields` overwrite header fields."""
    image = kind(noise(4, 5, 6) if voxels is None else voxels, affine)
    if kind is nib.Nifti1Image:
        image.set_qform(affine, 1)
    if sform is not None:
        image.set_sform(sform, 2)
    content = bytearray(image.to_bytes())
    if fields:
        header = nib.Nifti1Header(bytes(content[:348]))
        for name, value in fields.items():
            header[name] = value
        content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix in (".gz", ".mgz") else content)
    return path


def save_stack(folder, num_slices=6, step_mm=3.0, **fields):
    """Write a stack of slices, each with its own affine."""
    paths = []
    for number in range(num_slices):
        placed = stack_affine(number, step_mm)
        paths.append(save(folder / f"{number}.nii.gz", noise(4, 5, 1) + number, placed, **fields))
    return paths


def stack_affine(number, step_mm=3.0):
    placed = AFFINE.copy()
    placed[2, 3] += number * step_mm
    return placed


def subject(name, high, low=None, cohort="a", orientation=None):
    def source(paths):
        return Source(tuple(paths), True) if isinstance(paths, list) else Source((paths,), False)

    return Subject(
        cohort=cohort,
        id=f"id-{name}",
        name=name,
        split="train",
        high=source(high),
        low=source(low) if low else None,
        fit="resize",
        units=(),
        orientation=orientation,
    )


def only(problems):
    (problem,) = problems
    return problem


def sheared(angle_deg):
    affine = AFFINE.copy()
    affine[1, 2] = 3 * np.tan(np.deg2rad(angle_deg))
    return affine
