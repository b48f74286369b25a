"""The sources, commands and extras of the image, checked without a container engine to build it."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from commandlines import CLUSTER, ROOT, command_of, installed
from docker.utils.build import exclude_paths

from upfield.cli.main import VERBS
from upfield.common.command import parse

DOCKERFILE = CLUSTER / "Dockerfile"
# Files that only a working tree has; they must not get into an image.
PRIVATE = ("demo", ".venv", ".git", "run", "shards")


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each on one line, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # pyright: ignore[reportReturnType]


def values(name: str) -> list[str]:
    return [value for found, value in instructions() if found == name]


def context() -> set[str]:
    """Return the files that Docker's own client would send."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    return exclude_paths(str(ROOT), patterns)


def copied() -> list[str]:
    words = [[word for word in shlex.split(value) if not word.startswith("--")] for value in values("COPY")]
    return [source for *sources, _ in words for source in sources]


@pytest.mark.parametrize("source", copied())
def test_copied_files_exist_and_docker_receives_them(source: str) -> None:
    assert (ROOT / source).exists()
    sent = context()
    files = [path for path in (ROOT / source).rglob("*") if path.is_file()] or [ROOT / source]
    files = [path for path in files if path.suffix != ".onnx" or path.parent.name == "pretrained"]
    kept = [str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts]
    assert set(kept) <= sent


def test_docker_receives_only_copied_files() -> None:
    tops = {source.split("/")[0] for source in copied()} | {".dockerignore"}
    assert {path.split("/")[0] for path in context()} <= tops
    assert not {path for path in context() if path.split("/")[0] in PRIVATE or "__pycache__" in path}


def test_all_packages_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["setuptools"]["package-dir"].values()) <= set(copied())
    # setuptools reads them during the build.
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= set(copied())


def test_what_is_installed_is_pinned_and_the_extras_are_known() -> None:
    installs = [value for value in values("RUN") if "pip install" in value]
    assert all("--constraint constraints.txt" in value for value in installs)
    extras = {
        extra for value in installs for found in re.findall(r'"\.\[(.*?)\]"', value) for extra in found.split(",")
    }
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras <= known.keys()
    # The commands of the other files need these.
    assert extras >= {"s3", "serve", "tune"}


def test_the_image_runs_without_root_on_the_oldest_supported_python() -> None:
    assert values("USER") == ["1000"]
    assert instructions().index(("USER", "1000")) < instructions().index(("CMD", values("CMD")[0]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"python{project['requires-python'].removeprefix('>=')}" in values("RUN")[0]
    assert f"VERSION={project['version']}" in values("ARG")


def test_the_default_command_is_upfield_and_the_health_check_is_python() -> None:
    program, *arguments = json.loads(values("CMD")[-1])
    assert program == "upfield"
    if arguments[0] in VERBS:
        parse(command_of(arguments[0]), arguments[1:])
    else:
        assert arguments == ["--help"]
    (check,) = values("HEALTHCHECK")
    interpreter, flag, code = json.loads(check[check.index("[") :])
    assert (interpreter, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([installed("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_training_job_calls_the_node_script_by_its_path_in_the_image() -> None:
    (target,) = [value.split()[-1] for value in values("COPY") if "cluster/node.sh" in value]
    assert f"[{target}]" in (CLUSTER / "k8s" / "train.yaml").read_text()
    assert Path(target).is_absolute()
