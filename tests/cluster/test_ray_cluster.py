"""Ray's own parser reads the file for `ray up`."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from commandlines import CLUSTER, ROOT, command_lines, command_of, completed
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from upfield.common.command import parse
from upfield.tune.cluster import count_fitting


def config() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "ray" / "cluster.yaml").read_text())


def test_ray_parses_the_cluster_file() -> None:
    prepared = prepare_config(config())
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert types["gpu"]["max_workers"] == prepared["max_workers"]
    assert types["gpu"]["resources"]["GPU"] == 1


def test_ray_refuses_a_key_that_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="no_such_key"):
        validate_config(prepare_config(config() | {"no_such_key": 1}))


def test_machines_get_this_repository_and_install_its_versions() -> None:
    target = "/home/ubuntu/upfield"
    assert config()["file_mounts"][target] == "."
    (install,) = [line for line in config()["setup_commands"] if "pip install" in line]
    assert "--constraint ~/upfield/constraints.txt" in install
    extras = set(re.findall(r"\$HOME/upfield\[(.*?)\]", install)[0].split(","))
    # For shards and checkpoints in S3, and for the sweep's report and sampler.
    assert extras == {"s3", "tune"}
    assert extras <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    assert config()["auth"]["ssh_user"] == target.split("/")[2]
    assert (ROOT / "constraints.txt").is_file()


def test_the_sweep_requests_gpus_and_waits_for_them_because_none_are_there_at_the_start() -> None:
    types = config()["available_node_types"]
    assert types["gpu"]["min_workers"] == types["head"]["resources"]["GPU"] == 0
    (line,) = command_lines(CLUSTER / "ray" / "cluster.yaml")
    sweep = parse(command_of("tune"), completed(line.verb, line.arguments))
    assert sweep.wait_for_nodes_s >= 600
    assert count_fitting(sweep.resources, [(node["CPU"], node["GPU"]) for node in resources(types)]) == 1


def resources(types: dict[str, Any]) -> list[dict[str, float]]:
    return [kind["resources"] for kind in types.values()]


def test_machines_get_the_token_of_the_cluster() -> None:
    assert config()["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
