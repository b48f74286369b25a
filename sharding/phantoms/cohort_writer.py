"""Write a phantom cohort: the files of all subjects, and the `cohorts.yaml` that `upfield shard` reads."""

import functools
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from upfield.common.errors import InputError, VolumeError
from upfield.common.files import check_writable, write_text
from upfield.common.progress import track
from upfield.common.tables import counted
from upfield.common.tasks import run_tasks
from upfield.imaging.header import read_header
from upfield.sharding.configuration import PhantomConfig
from upfield.sharding.phantoms.anatomy import Template, load_template
from upfield.sharding.phantoms.label_map import check_label_map, check_labels_as
from upfield.sharding.phantoms.map_subject import MapTask, write_map_subject
from upfield.sharding.phantoms.subject_writer import PhantomTask, write_subject

LISTING = "cohorts.yaml"
STAGING = ".tmp-phantom"
FOLDERS = ("real", "IXI-T1", "labels")
CONTRAST = "    contrast: T1w\n"
TEXT = """\
# Written by: upfield phantom --subjects {subjects} --seed {seed}{labels}
{origin}
# Build shards with: upfield shard --config cohorts.yaml --out shards
cohorts:
  # Real pairs, one NIfTI file per axial slice. Their low field follows a different law than that of synthetic pairs.
  - name: real
    low: real/low/{{subject}}_slice_{{slice}}.nii.gz
    high: real/high/{{subject}}_slice_{{slice}}.nii.gz
    synthetic: 1
    split: {split}
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


TEMPLATE = "# Phantoms made from the MNI152 template: every subject has its own anatomy, contrasts and scanner."
MAPS = """\
# Heads rendered from label maps: every subject has its own anatomy, contrasts and scanner. Its true labels, on
# the grid of its high field, are in labels."""
# Two subjects of the same map in two splits would make held-out results too good.
APART = "{val: [sub-02], test: [sub-01]}"
COUNTS = "{val: 1, test: 1}"
LEAST_MAPS = 3


def write_cohort(config: PhantomConfig) -> None:
    """Write the folders and `cohorts.yaml` together or not at all, and print what they hold.

    Raises:
        InputError: the folder holds something else, there are no label maps, or nilearn is not installed.
        VolumeError: a file does not hold a label map of a head.
    """
    check_writable(config.out, "--out")
    refuse_foreign(config.out)
    num_pairs = math.ceil(config.subjects * 2 / 3)
    maps = find_maps(config) if config.labels is not None else []
    if not maps:
        require_nilearn()
    text = listing(config.subjects, config.seed, num_maps=len(maps))
    with _staging(config.out) as staging:
        for _ in track(_write_subjects(config, staging, num_pairs, maps), "phantoms", total=config.subjects):
            pass
        _publish(staging, config.out, text)
    low, high, volumes = (len(list((config.out / name).iterdir())) for name in ("real/low", "real/high", "IXI-T1"))
    print(f"{config.out / 'real'}: {num_pairs} subjects, {low} low and {high} high slices")
    print(f"{config.out / 'IXI-T1'}: {counted(volumes, 'volume')}")
    if maps:
        shared = "" if len(maps) >= LEAST_MAPS else "; with fewer than 3, training and test subjects share a map"
        print(f"{config.out / 'labels'}: {config.subjects} label maps, made from {len(maps)}{shared}")


def find_maps(config: PhantomConfig) -> list[Path]:
    """Find the label maps that the subjects are made from, and check them before anything is rendered.

    Raises:
        InputError: no file matches the pattern, or `labels_as` names something that is not known.
        VolumeError: a file does not hold a label map of a head, or does not say which side is left.
    """
    check_labels_as(config.labels_as)
    pattern = str(config.labels)
    paths = sorted(Path(name) for name in glob(os.path.expanduser(pattern), recursive=True))
    maps = [path for path in paths if path.is_file()]
    if not maps:
        found = "only folders match" if paths else "no file matches"
        raise InputError(
            f"labels: {found} {pattern!r}. Write a pattern of label maps in quotes, such as 'MAPS/*.nii.gz'."
        )
    maps = maps[: config.subjects]
    for path in maps:
        if not read_header(path).is_oriented:
            raise VolumeError(
                str(path), "the header does not say which side is left. Set its sform, or leave the map out."
            )
        check_label_map(path, config.labels_as)
    return maps


def choose_map(maps: list[Path], number: int) -> Path:
    """Return the map of a subject, counted from 0. The first two, which are held out, share theirs with nobody."""
    if len(maps) < LEAST_MAPS:
        return maps[number % len(maps)]
    return maps[number] if number < 2 else maps[2 + (number - 2) % (len(maps) - 2)]


def _write_subjects(config: PhantomConfig, staging: Path, num_pairs: int, maps: list[Path]) -> Iterator[None]:
    """Write the subjects' files, and yield once for each subject."""
    numbers = range(config.subjects)
    if not maps:
        tasks = [PhantomTask(staging, config.seed, number, num_pairs) for number in numbers]
        return run_tasks(_write_subject, tasks, config.jobs)
    labels_as = tuple(config.labels_as.items())
    return run_tasks(
        write_map_subject,
        [MapTask(staging, config.seed, number, num_pairs, choose_map(maps, number), labels_as) for number in numbers],
        config.jobs,
    )


def listing(subjects: int, seed: int, *, num_maps: int = 0) -> str:
    """Return the text of the cohort's `cohorts.yaml`; `num_maps` is 0 for phantoms made from the template."""
    return TEXT.format(
        subjects=subjects,
        seed=seed,
        labels=" --labels ..." if num_maps else "",
        origin=MAPS if num_maps else TEMPLATE,
        split=APART if num_maps >= LEAST_MAPS else COUNTS,
    )


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that is neither empty nor a phantom cohort (finished or interrupted).

    Raises:
        InputError: the folder holds something else, or the cohort's `cohorts.yaml` was edited.
    """
    if not folder.exists() or not any(folder.iterdir()) or (folder / STAGING).is_dir():
        return
    file = folder / LISTING
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    made = re.match(r"# Written by: upfield phantom --subjects (\d+) --seed (\d+)", text)
    ours = [listing(int(made[1]), int(made[2]), num_maps=number) for number in (0, 1, LEAST_MAPS)] if made else []
    # Earlier versions did not state the contrast.
    if text not in (*ours, *(each.replace(CONTRAST, "") for each in ours)):
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
            if (staging / name).is_dir():
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
