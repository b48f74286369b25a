"""The number of replicas is limited by the nodes' resources and by the scans processed at once."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from upfield.common.errors import InputError
from upfield.export.configuration import ServeConfig


@pytest.fixture
def quiet_ray() -> None:
    """Import Ray Serve without the pydantic warnings that it causes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import upfield.export.service.replicas.replica  # noqa: F401


def test_the_scans_processed_at_once_keep_all_replicas_busy(quiet_ray: None) -> None:
    from upfield.export.service.replicas.replica import replica_deployment
    from upfield.export.service.scan_requests.enhancement import STRIPS_IN_FLIGHT

    config = ServeConfig(model=Path("model.onnx"), replicas=2, max_replicas=8, scans_at_once=8)
    deployment = replica_deployment(config, 1, 0.0)._bound_deployment
    target = deployment._deployment_config.autoscaling_config.target_ongoing_requests
    assert config.scans_at_once * STRIPS_IN_FLIGHT >= 8 * target
    assert deployment.init_args[0] == str(Path.cwd() / "model.onnx")


def node(cores: int, gpus: int = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cores), "GPU": float(gpus)}}


@pytest.mark.parametrize(
    ("options", "nodes", "expected"),
    [
        ({"cores_per_replica": 2}, [node(4)], (2, 0.0)),
        ({"cores_per_replica": 2, "replicas": 3}, [node(3), node(4)], (2, 0.0)),
        ({"cores_per_replica": 2, "replicas": 3}, [node(3), node(3)], None),
        ({"cores_per_replica": 2}, [node(8, alive=False), node(1)], None),
        ({"address": "auto"}, [node(4)], (1, 0.0)),
        ({"cores_per_replica": 1, "gpus_per_replica": 0.5, "replicas": 2}, [node(4, 1)], (1, 0.5)),
        ({"cores_per_replica": 1, "replicas": 2}, [node(4, 1)], None),
        ({"cores_per_replica": 1, "gpus_per_replica": 0.2, "replicas": 5}, [node(8, 1)], (1, 0.2)),
        ({"cores_per_replica": 1, "gpus_per_replica": 0.1, "replicas": 10}, [node(16, 1)], (1, 0.1)),
        ({"cores_per_replica": 1, "gpus_per_replica": 0.3, "replicas": 4}, [node(8, 1)], None),
        ({"cores_per_replica": 1, "replicas": 2, "device": "cpu"}, [node(4, 1)], (1, 0.0)),
    ],
)
def test_replicas_that_would_never_start_are_refused(
    quiet_ray: None, options: dict[str, Any], nodes: list[dict[str, Any]], expected: tuple[int, float] | None
) -> None:
    from upfield.export.service.replicas.replica import replica_resources

    if expected is None:
        with pytest.raises(InputError, match="replicas: there is room for"):
            replica_resources(ServeConfig(Path("model.onnx"), **options), nodes)
    else:
        assert replica_resources(ServeConfig(Path("model.onnx"), **options), nodes) == expected
