import os
import socket
import subprocess
import sys

import pytest
import ray
from ray.exceptions import OutOfMemoryError

from upfield.common.errors import InputError, RunError
from upfield.common.ray_cluster import connect_ray, explain_ray_errors


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto", "nowhere"])
def test_a_ray_cluster_that_no_longer_runs_is_reported_at_once(monkeypatch, tmp_path, closed_port, address):
    monkeypatch.setenv("RAY_ADDRESS", address.format(closed_port))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(InputError, match=r"RAY_ADDRESS: cannot connect to a Ray cluster at .*unset it"):
        connect_ray()


def test_a_start_of_ray_that_times_out_is_no_bug_of_upfield(monkeypatch):
    def init(*_, **__):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(RunError, match=r"Ray cannot start on this machine: Exception: The current node timed out"):
        connect_ray("local")


def test_a_lack_of_memory_on_a_cluster_is_no_bug_of_upfield():
    with (
        pytest.raises(RunError, match=r"the sweep: OutOfMemoryError: full\. Check"),
        explain_ray_errors("the sweep"),
    ):
        raise OutOfMemoryError("full.")


def test_ray_starts_here_despite_the_address_of_a_cluster_that_no_longer_runs(short_folder, closed_port):
    (short_folder / "ray").mkdir()
    (short_folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{closed_port}")
    program = (
        "import ray; from upfield.common.ray_cluster import connect_ray; connect_ray(); print(ray.is_initialized())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_TMPDIR"] = str(short_folder)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
    # The token of this process is not the user's concern.
    assert "RAY_AUTH_MODE=disabled" not in done.stderr
