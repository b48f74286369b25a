"""`ray up`'s file is read by Ray's own parser."""

from typing import Any

import pytest
import yaml
from commandlines import CLUSTER, ROOT
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config


def config() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "ray" / "cluster.yaml").read_text())


def test_ray_reads_its_file() -> None:
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
    assert "$HOME/upfield[s3]" in install
    assert config()["auth"]["ssh_user"] == target.split("/")[2]
    assert (ROOT / "constraints.txt").is_file()


def test_machines_get_the_token_that_lets_them_in() -> None:
    assert config()["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
