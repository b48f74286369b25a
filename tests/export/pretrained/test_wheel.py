"""The package as users install it: wheel and source archive hold the model, which enhances without a network."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from heads import load, whole_head

from upfield.common.files import hash_file
from upfield.export.configuration import STARTER
from upfield.export.pretrained.packaged_model import model_named

ROOT = Path(__file__).parents[3]
# setuptools of this version can read pyproject.toml.
LEAST_SETUPTOOLS = 77
ENHANCE = "import sys; from upfield.cli import main; print(main.__file__); sys.exit(main.main(sys.argv[1:]))"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(int(version("setuptools").split(".")[0]) < LEAST_SETUPTOOLS, reason="setuptools is too old"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without what is ignored, because a build writes into its folder."""
    folder = tmp_path_factory.mktemp("wheel") / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "demo", "build", "*.egg-info", "tests", "docs", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def installed(source: Path) -> Path:
    """A folder in which the wheel is installed, alone."""
    pip = [sys.executable, "-m", "pip"]
    target, wheels = source.parent / "installed", source.parent / "wheels"
    offline = ["--quiet", "--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = wheels.glob("upfield-*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(target), str(wheel)], check=True, timeout=300)
    return target


def without_network() -> list[str]:
    """Return the words before a command that take away its network, none if the system does not permit this."""
    words = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        return []
    return words


def test_the_installed_wheel_enhances_a_scan_without_a_network(installed: Path, tmp_path: Path) -> None:
    scan = tmp_path / "sub-01_T1w.nii.gz"
    nib.Nifti1Image(whole_head(), np.diag([4.0, 4.0, 4.0, 1.0])).to_filename(scan)
    command = [*without_network(), sys.executable, "-c", ENHANCE, "enhance", str(scan), "--out", "out.nii.gz"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed)
    starter = model_named(str(STARTER))
    assert starter.introduction in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["model_sha256"] == hash_file(starter.path)
    voxels = np.asarray(load(tmp_path / "out.nii.gz").dataobj)
    assert voxels.shape == (160, 176, 192)
    assert 0 <= voxels.min() < voxels.max() <= 1


def test_the_source_archive_holds_the_models(source: Path, tmp_path: Path) -> None:
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True, timeout=300)
    (archive,) = tmp_path.glob("upfield-*.tar.gz")
    with tarfile.open(archive) as file:
        names = {Path(name).name for name in file.getnames()}
    assert {f"{STARTER}.onnx", f"{STARTER}.md"} <= names
