"""Fixtures that are built once for all workers: a tiny cohort, its shard set, a run and a model file.

They are shared and therefore read-only. A test that changes files must copy them first."""

import contextlib
import fcntl
import gc
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage

if TYPE_CHECKING:
    from browser import Browser

# The tests run beside each other, their images are small, and sums must not depend on what else the machine does.
os.environ["OMP_NUM_THREADS"] = "1"

# `make test` tries the same few examples everywhere, and `make test-slow` many new ones (marker `generated`).
settings.register_profile("few", max_examples=20, derandomize=True, deadline=None, database=None)
settings.register_profile("many", max_examples=500, deadline=None, print_blob=True)
settings.load_profile("few")

LOW_SHAPE, LOW_SPACING_MM = (12, 14, 6), (1.6, 1.6, 5.0)
HIGH_SHAPE, HIGH_SPACING_MM = (20, 24, 28), (1.0, 1.0, 1.0)
# IXI volumes are larger than the grid, so they are cropped.
IXI_SHAPE = (24, 26, 32)
COHORTS = """\
geometry: {low_shape: [12, 14, 6], low_spacing_mm: [1.6, 1.6, 5], high_shape: [20, 24, 28], high_spacing_mm: [1, 1, 1]}
samples_per_shard: 32
subjects_per_block: 2
cohorts:
  - name: real
    low: real/low/{subject}_slice_{slice}.nii.gz
    high: real/high/{subject}_slice_{slice}.nii.gz
    split: {val: 1, test: 1}
  - name: ixi
    high: IXI-T1/{subject}-{site}-{scan}-T1.nii.gz
"""

# Fixtures `http_store`, `s3_server` and `s3`.
pytest_plugins = ("store_fixtures",)

# Their tests start processes and take longest. If they ran last, one worker would wait for the other.
FIRST = ("tune/test_sweep", "distributed/", "cluster/", "evaluation/test_evaluate", "export/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of the slowest tests to the front."""

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((number for number, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Hide what was imported so far from the garbage collector, which each run calls at its end, and which is slow."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A Chromium without a window. Tests that need one are skipped where it is not installed."""
    from browser import Browser, find_chromium

    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed. Install the Debian package chromium to test pages in a browser.")
    opened = Browser(program)
    yield opened
    opened.close()


BuildOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """A function that has a new folder filled once for all workers of pytest-xdist, and returns the folder."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def build(name: str, write: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                write(folder)
                done.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def tiny_cohort(build_once: BuildOnce) -> Path:
    """A folder with `real` (5 subjects, slice stacks), `IXI-T1` (3 volumes, stored P-S-R) and their cohorts.yaml."""
    return build_once("cohort", write_cohort)


def write_cohort(folder: Path) -> None:
    """Write the files of `tiny_cohort`."""
    for field in ("real/low", "real/high", "IXI-T1"):
        (folder / field).mkdir(parents=True)
    for number in range(5):
        generator = np.random.default_rng([1, number])
        head = draw_head(generator, HIGH_SHAPE)
        write_slices(folder / "real/high", f"sub-{number:02d}", measure_high(generator, head), HIGH_SPACING_MM)
        write_slices(folder / "real/low", f"sub-{number:02d}", measure_low(generator, head), LOW_SPACING_MM)
    for number in range(3):
        generator = np.random.default_rng([2, number])
        voxels = measure_high(generator, draw_head(generator, IXI_SHAPE))
        write_psr(folder / f"IXI-T1/IXI{number + 2:03d}-Guys-{number + 700:04d}-T1.nii.gz", voxels)
    (folder / "cohorts.yaml").write_text(COHORTS)


def call_quietly(main: Callable[[list[str]], int], *arguments: object) -> None:
    """Call a script's `main`, which must succeed, without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main([str(argument) for argument in arguments])
    assert code == 0, errors.getvalue()


@pytest.fixture(scope="session")
def tiny_shards(tiny_cohort: Path, build_once: BuildOnce) -> Path:
    """The shard set of `tiny_cohort`: 180 slices of 24 x 28 for training, 20 each for validation and test."""
    from upfield.sharding.shard import main

    def write(folder: Path) -> None:
        call_quietly(main, "--config", tiny_cohort / "cohorts.yaml", "--out", folder / "shards", "--jobs", 1)

    return build_once("tiny", write) / "shards"


@pytest.fixture(scope="session")
def tiny_run(tiny_shards: Path, build_once: BuildOnce) -> Path:
    """A run of two steps on `tiny_shards`, made by the real script in a separate process."""
    from upfield.distributed.launch import SCRIPT

    def write(folder: Path) -> None:
        arguments = ["--data.shards", tiny_shards, "--run.out", folder / "run", "--run.max_steps", 2]
        command = [sys.executable, SCRIPT, *arguments, "--run.precision", "no", "--model.preset", "tiny"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return build_once("training", write) / "run"


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path, build_once: BuildOnce) -> Path:
    """The model file exported from `tiny_run`."""
    from upfield.export.to_onnx import main

    return build_once("export", lambda folder: call_quietly(main, tiny_run, "--out", folder / "model.onnx")) / (
        "model.onnx"
    )


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that calls a script's `main` with arguments and returns (exit code, stdout, stderr)."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def draw_head(generator: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Draw signal `(I, J, K)` in 0..1: a bright shell around grey matter with smooth structure, air outside."""
    middle = (np.array(shape) - 1) / 2 + generator.uniform(-1, 1, 3)
    half = np.array(shape) * generator.uniform(0.36, 0.44, 3)
    places = np.meshgrid(*map(np.arange, shape), indexing="ij")
    radius = np.sqrt(sum(((place - m) / h) ** 2 for place, m, h in zip(places, middle, half, strict=True)))
    folds = ndimage.gaussian_filter(generator.standard_normal(shape), 1.2)
    brain = 0.55 + 0.3 * np.tanh(2 * folds / folds.std())
    head = np.where(radius < 0.8, brain, np.where(radius < 0.9, 0.1, 0.9)) * (radius < 1)
    return ndimage.gaussian_filter(head, 0.4)


def measure_high(generator: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Simulate a high-field scan `(I, J, K)` int16 in scanner units from a head of the same shape."""
    noisy = np.abs(head + 0.01 * generator.standard_normal(head.shape))
    return np.rint(1000 * noisy).astype(np.int16)


def measure_low(generator: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Simulate a low-field scan, blurred across slices, darker and noisier.

    Args:
        generator: source of the noise.
        head: signal `HIGH_SHAPE` in 0..1.

    Returns:
        `LOW_SHAPE` int16 in scanner units.
    """
    blurred = ndimage.gaussian_filter(head, (0.7, 0.7, 2.0))
    factors = np.array(LOW_SHAPE) / HIGH_SHAPE
    coarse = np.clip(np.asarray(ndimage.zoom(blurred, factors, order=1)), 0, 1) ** 1.3
    noisy = np.abs(coarse + 0.03 * generator.standard_normal(LOW_SHAPE))
    return np.rint(3000 * noisy).astype(np.int16)


def write_slices(folder: Path, subject: str, voxels: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    """Write each axial slice of `(I, J, K)` to a separate file, with its position in world space."""
    for k in range(voxels.shape[2]):
        affine = np.diag((*spacing_mm, 1.0))
        affine[2, 3] = k * spacing_mm[2]
        image = nib.Nifti1Image(voxels[:, :, k : k + 1], affine)
        image.to_filename(folder / f"{subject}_slice_{k:03d}.nii.gz")


def write_psr(path: Path, voxels: np.ndarray) -> None:
    """Write RAS+ voxels `(I, J, K)` of 1 mm as IXI stores volumes: with axes to posterior, superior and right."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PSR"))
    affine = np.eye(4) @ inv_ornt_aff(turn, voxels.shape)
    nib.Nifti1Image(apply_orientation(voxels, turn), affine).to_filename(path)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a name short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
