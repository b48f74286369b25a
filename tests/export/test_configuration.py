"""ServeConfig refuses values that the service cannot run with."""

from pathlib import Path
from typing import Any

import pytest

from upfield.export.configuration import ServeConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 2, "max_replicas": 5}, "max_replicas: expected at most scans_at_once"),
        ({"gpus_per_replica": 1.5}, "gpus_per_replica: expected a whole number or a share below 1, found 1.5"),
        ({"gpus_per_replica": float("inf")}, "gpus_per_replica: expected a whole number"),
        ({"timeout_s": float("inf")}, "timeout_s: expected a finite number of seconds"),
        ({"allowed_hosts": ["*.example"]}, r"allowed_hosts: \*\.example contains a wildcard"),
        ({"idle_timeout_s": 0}, "idle_timeout_s: expected at least 0.1"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeConfig(Path("model.onnx"), **options)
