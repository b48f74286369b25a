"""Sweeps on two nodes that receive the package, and sweeps with a store instead of a shared folder."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster
from sweeps import command, environment, rows, run_sweep, write_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of two nodes with one CPU each."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def build_wheel(folder: Path, stale: str = "") -> Path:
    """Build a wheel of this checkout, with a foreign line in the file `stale` if one is named."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "demo", "build", "*.egg-info", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=ignored)
    if stale:
        with (source / stale).open("a") as file:
            file.write("# another version\n")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=300)
    return next(folder.glob("upfield-*.whl"))


@pytest.mark.parametrize("stale", ["tune/trial.py", "common/errors.py", "distributed/samples/order.py"])
def test_two_nodes_refuse_a_package_whose_code_is_stale(
    tiny_shards: Path, tmp_path: Path, two_nodes: Cluster, stale: str
) -> None:
    config = write_config(tmp_path, tiny_shards, "space: {optim.lr: [1.0e-3]}\n", ", max_steps: 2")
    package = build_wheel(tmp_path / "other", stale)
    refused = subprocess.run(
        [*command(config, tmp_path / "sweep"), "--address", str(two_nodes.address), "--package", str(package)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert refused.returncode == 2, refused.stderr
    assert "differs from the code here" in refused.stderr


def test_two_nodes_train_with_the_package_that_was_sent(tiny_shards: Path, tmp_path: Path, two_nodes: Cluster) -> None:
    text = "space: {optim.lr: [1.0e-3, 1.0e-4, 1.0e-5, 1.0e-6]}\n"
    config = write_config(tmp_path, tiny_shards, text, ", max_steps: 2")
    package = build_wheel(tmp_path / "own")
    run_sweep(config, tmp_path / "sweep", "--address", str(two_nodes.address), "--package", str(package))
    trials = rows(tmp_path / "sweep" / "trials.csv")
    assert {row["status"] for row in trials} == {"done"}
    assert len({row["node"] for row in trials}) == 2


def test_a_sweep_waits_for_the_nodes_that_it_needs(tiny_shards: Path, tmp_path: Path, two_nodes: Cluster) -> None:
    text = "space: {optim.lr: [1.0e-3]}\nresources: {cpus_per_worker: 2}\n"
    config = write_config(tmp_path, tiny_shards, text, ", max_steps: 2")
    address = ["--address", str(two_nodes.address), "--wait_for_nodes_s"]
    refused = subprocess.run(
        [*command(config, tmp_path / "sweep"), *address, "1"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert refused.returncode == 2
    assert (
        "a trial needs 1 processes of 2 CPUs and 0 GPUs each, which do not fit the cluster after 1 s: it has 2 nodes"
        in refused.stderr
    )
    process = subprocess.Popen([*command(config, tmp_path / "sweep"), *address, "200"], env=environment())
    time.sleep(15)
    assert process.poll() is None
    two_nodes.add_node(num_cpus=2)
    assert process.wait(300) == 0
    assert rows(tmp_path / "sweep" / "trials.csv")[0]["status"] == "done"


def test_trials_upload_to_a_store_and_the_best_run_is_downloaded(tiny_shards: Path, tmp_path: Path) -> None:
    import boto3

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    client.create_bucket(Bucket="sweeps")
    text = "space: {optim.lr: [1.0e-3, 1.0e-5]}\n"
    config = write_config(tmp_path, tiny_shards, text, ", max_steps: 4, validate_every: 2")
    store = f"s3://sweeps/mine?endpoint_override={host}%3A{port}&scheme=http"
    try:
        run_sweep(config, tmp_path / "sweep", "--storage", store, **keys)
        uploaded = [entry["Key"] for entry in client.list_objects_v2(Bucket="sweeps")["Contents"]]
        again = run_sweep(config, tmp_path / "sweep", "--storage", store, **keys)
        shutil.rmtree(tmp_path / "sweep")  # as if the driver started on another machine
        home = run_sweep(config, tmp_path / "sweep", "--storage", store, **keys)
        (tmp_path / "colleague").mkdir()
        text = "space: {optim.lr: [1.0e-4]}\n"
        theirs = write_config(tmp_path / "colleague", tiny_shards, text, ", max_steps: 4, validate_every: 2")
        refused = subprocess.run(
            [*command(theirs, tmp_path / "colleague" / "sweep"), "--storage", store],
            env=environment() | keys,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        server.stop()
    assert any(key.startswith("mine/sweep/") and key.endswith("best/model.safetensors") for key in uploaded)
    best = tmp_path / "sweep" / "best"
    assert (best / "best" / "model.safetensors").is_file()
    assert not best.is_symlink()
    assert not (tmp_path / "sweep" / "trials").exists()
    assert {row["status"] for row in rows(tmp_path / "sweep" / "trials.csv")} == {"done"}
    assert "Export it with: upfield export" in again.stdout
    assert home.stdout == again.stdout
    assert refused.returncode == 2
    assert "s3://sweeps/mine/sweep/sweep.yaml: this sweep was started with other values of" in refused.stderr
    assert not (tmp_path / "colleague" / "sweep").exists()
