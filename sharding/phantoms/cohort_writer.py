"""Write a phantom cohort: the files of all subjects, and the `cohorts.yaml` that `upfield shard` reads."""

import functools
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from upfield.common.errors import InputError
from upfield.common.files import write_text
from upfield.common.progress import track
from upfield.common.tasks import run_tasks
from upfield.sharding.configuration import PhantomConfig
from upfield.sharding.phantoms.anatomy import Template, load_template
from upfield.sharding.phantoms.subject_writer import PhantomTask, write_subject

LISTING = "cohorts.yaml"
STAGING = ".tmp-phantom"
FOLDERS = ("real", "IXI-T1")
CONTRAST = "    contrast: T1w\n"
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
    contrast: T1w
    # The files' affines are right, so both fields are placed by millimetres. `resize`, the default for slice stacks,
    # would stretch the low field by 2% against the high field: it matches the centres of the outermost slices, and
    # those of 5 mm slices lie 2 mm farther inside.
    fit: crop_pad
  # High field only, stored posterior-superior-right like the IXI data set: all pairs are synthetic.
  - name: ixi
    high: IXI-T1/{{subject}}-{{site}}-{{scan}}-T1.nii.gz
    synthetic: 1
    contrast: T1w
"""


def write_cohort(config: PhantomConfig) -> None:
    """Write the folders and `cohorts.yaml` together or not at all, and print what they hold.

    Raises:
        InputError: the folder holds something else, or nilearn is not installed.
    """
    refuse_foreign(config.out)
    require_nilearn()
    num_pairs = math.ceil(config.subjects * 2 / 3)
    with _staging(config.out) as staging:
        tasks = [PhantomTask(staging, config.seed, number, num_pairs) for number in range(config.subjects)]
        for _ in track(run_tasks(_write_subject, tasks, config.jobs), "phantoms", total=len(tasks)):
            pass
        _publish(staging, config.out, listing(config.subjects, config.seed))
    low, high, volumes = (len(list((config.out / name).iterdir())) for name in ("real/low", "real/high", "IXI-T1"))
    print(f"{config.out / 'real'}: {num_pairs} subjects, {low} low and {high} high slices")
    print(f"{config.out / 'IXI-T1'}: {volumes} volumes")


def listing(subjects: int, seed: int) -> str:
    """Return the text of the cohort's `cohorts.yaml`."""
    return TEXT.format(subjects=subjects, seed=seed)


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that is neither empty nor a phantom cohort (finished or interrupted).

    Raises:
        InputError: the folder holds something else, or the cohort's `cohorts.yaml` was edited.
    """
    if not folder.exists() or not any(folder.iterdir()) or (folder / STAGING).is_dir():
        return
    file = folder / LISTING
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    made = re.match(r"# Written by: upfield phantom --subjects (\d+) --seed (\d+)\n", text)
    expected = listing(int(made[1]), int(made[2])) if made else None
    # Earlier versions did not state the contrast.
    if expected is None or text not in (expected, expected.replace(CONTRAST, "")):
        found = f"a {LISTING} that was edited" if made else f"{min(path.name for path in folder.iterdir())}"
        raise InputError(
            f"{folder}: expected an empty folder or a phantom cohort, found {found}. Choose another folder."
        )


def require_nilearn() -> None:
    """Raise InputError if nilearn is not installed, before any process starts; importing nilearn takes seconds."""
    if find_spec("nilearn") is None:
        raise InputError(
            "Phantoms are made from a template that nilearn ships, and nilearn is not installed. "
            "Run: pip install 'upfield[demo]'"
        )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yield an empty folder within `out`. Remove it at the end, and `out` too if it is then empty."""
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
    """Replace the contents of `out`. Remove `cohorts.yaml` first and write it last, so that its files always exist."""
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


def _write_subject(task: PhantomTask) -> None:
    write_subject(task, _template())


@functools.cache
def _template() -> Template:
    return load_template()
