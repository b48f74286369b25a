"""Every command line, flag and path in the cluster files exists, and the shell scripts are clean."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from commandlines import CLUSTER, FILES, PAGES, ROOT, CommandLine, command_lines, command_of, completed, installed
from torch.distributed.run import get_args_parser

from upfield.common.command import parse

LINES = [line for path in FILES for line in command_lines(path)]
# tests/docs/test_pages.py parses the commands of the pages, but not the options of their launchers.
LAUNCHED = [line for line in (*LINES, *(line for path in PAGES for line in command_lines(path))) if line.launcher]
SHELL_SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
PATHS = re.compile(r"(?:cluster|distributed|tune|benchmarks|sharding|export)/[\w./-]*\w")


def test_command_lines_of_every_kind_of_file_are_found() -> None:
    found = {line.path.name for line in LINES}
    assert {"README.md", "train.sbatch", "tune.sbatch", "shard.sbatch", "tune.yaml", "cluster.yaml"} <= found
    assert {"train", "tune", "shard"} <= {line.verb for line in LINES}


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_line_is_parsed_by_its_own_command(line: CommandLine) -> None:
    parse(command_of(line.verb), completed(line.verb, line.arguments))


@pytest.mark.parametrize("line", LAUNCHED, ids=str)
def test_a_launcher_accepts_its_options(line: CommandLine) -> None:
    accelerate = line.words[0] == "accelerate"
    parser = launch_command_parser() if accelerate else get_args_parser()
    parsed = parser.parse_args(line.launcher[2 if accelerate else 1 :])
    assert parsed.training_script == line.launcher[-1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_named_path_of_the_repository_exists(path: Path) -> None:
    named = {name.rstrip(".") for name in PATHS.findall(path.read_text(encoding="utf-8"))}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_containers_of_the_training_job_get_arguments_that_train_takes() -> None:
    documents = yaml.safe_load_all((CLUSTER / "k8s" / "train.yaml").read_text())
    (job,) = (document for document in documents if document["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    config = parse(command_of("train"), container["args"])
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    processes = int(environment["NUM_NODES"]) * int(environment["PROCESSES"])
    assert config.data.batch_size % processes == 0
    assert config.data.groups is not None
    assert config.data.groups % int(environment["NUM_NODES"]) == 0
    assert config.run.stopped_code == 75


def test_the_scripts_exist() -> None:
    assert len(SHELL_SCRIPTS) == 5


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_clean(path: Path) -> None:
    for command in (["bash", "-n", path], [installed("shellcheck"), "--external-sources", "--source-path", ROOT, path]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
