"""`upfield phantom`: a cohort of anatomically varied heads, as real pairs and as IXI-like volumes."""

import functools
import math
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from upfield.common.command import Command, execute
from upfield.common.errors import InputError
from upfield.common.files import write_text
from upfield.common.progress import track
from upfield.common.tasks import run_tasks
from upfield.sharding.configuration import GeometryConfig, PhantomConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from upfield.sharding.phantoms.anatomy import Blur, Contrast, Morphology, Scanner, Template

LISTING = "cohorts.yaml"
STAGING = ".tmp-phantom"
FOLDERS = ("real", "IXI-T1")
TEXT = """\
# Written by: upfield phantom --subjects {subjects} --seed {seed}
# Phantoms made from the MNI152 template: every subject has an anatomy, contrasts and a scanner of its own.
# Build shards with: upfield shard --config cohorts.yaml --out shards
cohorts:
  # Real pairs, one NIfTI file per axial slice. Their low field is degraded by another law than synthetic ones are.
  - name: real
    low: real/low/{{subject}}_slice_{{slice}}.nii.gz
    high: real/high/{{subject}}_slice_{{slice}}.nii.gz
    synthetic: 1
    split: {{val: 1, test: 1}}
    # The files' affines are right, so both fields are placed by millimetres. `resize`, the default for slice stacks,
    # would stretch the low field by 2% against the high field: it matches the centres of the outermost slices, and
    # those of 5 mm slices lie 2 mm farther inside.
    fit: crop_pad
  # High field only, stored posterior-superior-right like the IXI data set: all pairs are synthetic.
  - name: ixi
    high: IXI-T1/{{subject}}-{{site}}-{{scan}}-T1.nii.gz
    synthetic: 1
"""


@dataclass(frozen=True)
class PhantomSubject:
    """All that is drawn for one subject besides its random fields."""

    morphology: "Morphology"
    high_contrast: "Contrast"
    high_scanner: "Scanner"
    low_contrast: "Contrast"
    low_scanner: "Scanner"
    low_blur: "Blur"


@dataclass(frozen=True)
class PhantomTask:
    """One subject to write."""

    folder: Path
    """Where `real` and `IXI-T1` are made."""
    seed: int
    """Of the cohort."""
    number: int
    """Of the subject within the cohort, from 0; with the seed it decides everything drawn."""
    num_pairs: int
    """Subjects below this number become real pairs, the others IXI-like volumes."""
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    """The two grids."""


def write_phantoms(config: PhantomConfig) -> None:
    """Write the cohort: folders and `cohorts.yaml` together or not at all.

    Raises:
        InputError: the folder holds something else, or nilearn is not installed.
    """
    refuse_foreign(config.out)
    require_nilearn()
    num_pairs = math.ceil(config.subjects * 2 / 3)
    with _staging(config.out) as staging:
        jobs = [PhantomTask(staging, config.seed, number, num_pairs) for number in range(config.subjects)]
        for _ in track(run_tasks(_work, jobs, config.jobs), "phantoms", total=len(jobs)):
            pass
        _publish(staging, config.out, listing(config.subjects, config.seed))
    low, high, volumes = (len(list((config.out / name).iterdir())) for name in ("real/low", "real/high", "IXI-T1"))
    print(f"{config.out / 'real'}: {num_pairs} subjects, {low} low and {high} high slices")
    print(f"{config.out / 'IXI-T1'}: {volumes} volumes")


def listing(subjects: int, seed: int) -> str:
    """Give the text of the cohort's `cohorts.yaml`."""
    return TEXT.format(subjects=subjects, seed=seed)


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder with anything in it but a phantom cohort, finished or interrupted: it is about to be replaced.

    Raises:
        InputError: there is something else, or somebody has edited the cohort's `cohorts.yaml`.
    """
    if not folder.exists() or not any(folder.iterdir()) or (folder / STAGING).is_dir():
        return
    file = folder / LISTING
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    made = re.match(r"# Written by: upfield phantom --subjects (\d+) --seed (\d+)\n", text)
    if made is None or text != listing(int(made[1]), int(made[2])):
        found = f"a {LISTING} that was edited" if made else f"{min(path.name for path in folder.iterdir())}"
        raise InputError(
            f"{folder}: expected an empty folder or a phantom cohort, found {found}; choose another folder"
        )


def require_nilearn() -> None:
    """Raise InputError where nilearn is not installed, before any process is started; importing it takes seconds."""
    if find_spec("nilearn") is None:
        raise InputError(
            "expected nilearn, whose template the phantoms are made from, found none; pip install 'upfield[demo]'"
        )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Give an empty folder within `out`, removed at the end, as is `out` where nothing else is in it."""
    staging = out / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not any(out.iterdir()):
            out.rmdir()


def _publish(staging: Path, out: Path, text: str) -> None:
    """Replace what `out` holds: the listing goes first and comes last, so that whoever finds one finds its files."""
    (out / LISTING).unlink(missing_ok=True)
    try:
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
            (staging / name).rename(out / name)
        write_text(out / LISTING, text)
    except BaseException:
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        raise


def _work(job: PhantomTask) -> None:
    write_subject(job, _template())


@functools.cache
def _template() -> "Template":
    from upfield.sharding.phantoms.anatomy import load_template

    return load_template()


def write_subject(job: PhantomTask, template: "Template") -> None:
    """Make one subject and write its files: slices of both fields, or one IXI-like volume."""
    import numpy as np

    from upfield.sharding.phantoms.anatomy import TemplateGrid, blur_lines, make_tissues, measure

    grid = TemplateGrid(job.geometry.high_shape, job.geometry.high_spacing_mm)
    low_grid = TemplateGrid(job.geometry.low_shape, job.geometry.low_spacing_mm)
    generator = np.random.default_rng([job.seed, job.number])
    subject = draw_subject(generator)
    tissues = make_tissues(generator, grid, template, subject.morphology)
    high = measure(generator, tissues, grid, subject.high_contrast, subject.high_scanner)
    if job.number >= job.num_pairs:
        index = job.number - job.num_pairs + 1
        write_ixi(job.folder / "IXI-T1" / f"IXI9{index:02d}-PH-{1000 + index}-T1.nii.gz", high, grid.affine)
        return
    lines = blur_lines(low_grid, grid, subject.low_blur)
    low = measure(generator, tissues, grid, subject.low_contrast, subject.low_scanner, lines)
    name = f"sub-{job.number + 1:02d}"
    write_slices(job.folder / "real" / "low", name, low, low_grid.affine)
    write_slices(job.folder / "real" / "high", name, high, grid.affine)


def draw_subject(generator: "np.random.Generator") -> PhantomSubject:
    """Draw one subject's parameters: the T1 order white > grey > fluid at both fields, less of it at low field."""
    from upfield.sharding.phantoms.anatomy import Blur, Contrast, Morphology, Scanner

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


def write_slices(folder: Path, subject: str, voxels: "NDArray[np.float32]", affine: "NDArray[np.float64]") -> None:
    """Write each axial slice of a volume to a file of its own, placed in world space by its own affine.

    Args:
        folder: made if missing.
        subject: first part of the file names.
        voxels: `(I, J, K)` in scanner units, RAS+ order.
        affine: `(4, 4)`, voxel index -> world mm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(voxels.shape[2]):
        placed = affine.copy()
        placed[:3, 3] += index * affine[:3, 2]
        _save(folder / f"{subject}_slice_{index:03d}.nii.gz", voxels[:, :, index : index + 1], placed)


def write_ixi(path: Path, voxels: "NDArray[np.float32]", affine: "NDArray[np.float64]") -> None:
    """Write a volume as the IXI data set stores them: axes run to posterior, superior, right.

    Args:
        path: its folder is made if missing.
        voxels: `(I, J, K)` in scanner units, RAS+ order.
        affine: `(4, 4)`, voxel index -> world mm.
    """
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PSR"))
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, apply_orientation(voxels, turn), affine @ inv_ornt_aff(turn, voxels.shape))


def _save(path: Path, voxels: "NDArray[np.float32]", affine: "NDArray[np.float64]") -> None:
    import numpy as np
    from nibabel.nifti1 import Nifti1Image

    # nibabel compresses at level 1 and writes no time into the file: quick, and equal voxels are equal bytes.
    image = Nifti1Image(np.rint(voxels).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.to_filename(path)


COMMAND = Command("phantom", PhantomConfig, write_phantoms, positional=("out",))


def main(argv: list[str] | None = None) -> int:
    """Run `upfield phantom`; give the exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
