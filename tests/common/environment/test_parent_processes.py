"""The names, paths and arguments of parent processes decide nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Ray runs its workers in another environment if a parent process is `uv run`.
CHILD = """
from upfield.common.environment.settling import settle_environment
settle_environment("tune")
from ray._private.worker import _maybe_modify_runtime_env
from upfield.common.cores import num_threads
from upfield.distributed.process_group import expected_world_size
print(_maybe_modify_runtime_env({}, False), expected_world_size(), num_threads())
"""
PARENT = "import os, subprocess, sys; sys.exit(subprocess.run([os.environ['OWN_PYTHON'], 'child.py']).returncode)"
FOREIGN = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "ACCELERATE_MIXED_PRECISION",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
)


@pytest.mark.slow
def test_a_process_below_words_of_launchers_trains_alone(tmp_path: Path) -> None:
    folder = tmp_path / "torchrun accelerate launch" / "srun slurm mpirun" / "ray raylet"
    folder.mkdir(parents=True)
    (folder / "child.py").write_text(CHILD)
    (folder / "run").write_text(PARENT)
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment |= {"OMP_NUM_THREADS": "3", "OWN_PYTHON": sys.executable}
    # The parent's command line is `uv run torchrun --nproc_per_node 8`.
    command = ["uv", "run", "torchrun", "--nproc_per_node", "8"]
    done = subprocess.run(
        command, executable=sys.executable, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "{} 1 3", done.stderr
