"""Variables that would change what is computed are removed or refused, and each is named in one line."""

import os
import subprocess
import sys

import pytest

from upfield.common.environment.settling import recorded_environment, refuse_environment, settle_environment
from upfield.common.errors import InputError


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("RANK", None)


@pytest.mark.parametrize(
    ("verb", "name", "value", "remedy"),
    [
        ("train", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--data.micro_batch"),
        ("train", "ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--run.compile"),
        ("tune", "ACCELERATE_TORCH_DEVICE", "cpu", "CUDA_VISIBLE_DEVICES"),
        ("train", "TORCHDYNAMO_DISABLE", "1", "--run.compile"),
        ("enhance", "NVIDIA_TF32_OVERRIDE", "1", "--precision"),
        ("enhance", "ORT_TENSORRT_FP16_ENABLE", "1", "--precision"),
        ("evaluate", "ONEDNN_DEFAULT_FPMATH_MODE", "BF16", "--run.precision"),
        ("shard", "JSONARGPARSE_DEFAULT_ENV", "true", ""),
    ],
)
def test_a_variable_that_changes_values_is_removed_and_named(
    capsys: pytest.CaptureFixture[str], verb: str, name: str, value: str, remedy: str
) -> None:
    os.environ[name] = value
    settle_environment(verb)
    said = capsys.readouterr().err
    assert name not in os.environ
    assert f"{name}={value} has no effect" in said
    assert remedy in said


@pytest.mark.parametrize(
    ("verb", "variables"),
    [
        ("train", {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_DYNAMO_MODE": "default"}),
        ("train", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "NVIDIA_TF32_OVERRIDE": "0"}),
        ("train", {"PMI_SIZE": "2", "PMI_RANK": "0"}),
        ("train", {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
        ("shard", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_USE_DEEPSPEED": "true"}),
        ("train", {"ACCELERATE_USE_DEEPSPEED": "false", "FSDP_ACTIVATION_CHECKPOINTING": "false"}),
        ("train", {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "RANK": "1"}),
    ],
    ids=[
        "as the launcher",
        "without effect",
        "of srun",
        "recorded",
        "of another command",
        "switched off",
        "of another rank",
    ],
)
def test_nothing_is_said_of_other_variables(
    capsys: pytest.CaptureFixture[str], verb: str, variables: dict[str, str]
) -> None:
    os.environ |= variables
    settle_environment(verb)
    refuse_environment(verb)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "cluster/accelerate"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "1", "cluster/accelerate"),
        ("FSDP_IGNORED_MODULES", "decoder", "FSDP for all modules"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "--run.activation_checkpointing"),
    ],
)
def test_a_variable_that_asks_for_something_else_is_refused(name: str, value: str, remedy: str) -> None:
    os.environ[name] = value
    with pytest.raises(InputError, match=f"{name}={value}: .*{remedy}"):
        refuse_environment("train")


@pytest.mark.parametrize("value", ["", "maybe"])
def test_a_flag_is_true_or_false(value: str) -> None:
    os.environ["ACCELERATE_USE_CPU"] = value
    with pytest.raises(InputError, match=f"ACCELERATE_USE_CPU: expected true or false .* found '{value}'"):
        refuse_environment("train")
    refuse_environment("shard")


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize(
    "variables", [{"LOCAL_RANK": "abc"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "MASTER_PORT": "x"}]
)
def test_a_launchers_variable_is_a_number(verb: str, variables: dict[str, str]) -> None:
    os.environ |= variables
    settle_environment(verb)
    with pytest.raises(InputError, match=f"{list(variables)[-1]}: expected a number"):
        refuse_environment(verb)


def test_empty_variables_and_a_kubernetes_service_called_master_are_no_launcher() -> None:
    os.environ |= {"RANK": "", "LOCAL_RANK": "", "MASTER_PORT": "tcp://10.0.0.1:80"}
    os.environ.pop("WORLD_SIZE", None)
    settle_environment("train")
    refuse_environment("train")
    assert not os.environ.keys() & {"RANK", "LOCAL_RANK"}


@pytest.mark.parametrize("variable", ["PYTHONWARNINGS=error", "MPLBACKEND=module://missing", "LOGLEVEL=verbose"])
def test_a_variable_that_would_end_the_command_is_ignored(variable: str) -> None:
    name, _, value = variable.partition("=")
    code = (
        "import warnings; from upfield.common.environment.settling import settle_environment;"
        "settle_environment('train'); warnings.warn('of a library'); import matplotlib, torch.distributed"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, name: value}, check=True, capture_output=True)


def test_names_of_files_are_utf8_in_every_locale(tmp_path) -> None:
    script = tmp_path / "command.py"
    script.write_text(
        "import sys; from upfield.common.environment.settling import use_utf8; use_utf8(); print(ascii(sys.argv[1:]))"
    )
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, os.fsencode(script), "é".encode(), b"\xfc"]
    done = subprocess.run(command, env={**os.environ, **locale}, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == r"['\xe9', '\udcfc']"


def test_ray_may_set_the_device_of_its_workers() -> None:
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cuda:0", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    settle_environment("train", in_worker=True)
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cuda:0"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in os.environ


def test_variables_that_change_rounding_are_recorded() -> None:
    os.environ |= {"OMP_NUM_THREADS": "3", "FSDP_VERSION": "2", "HOME": "/nowhere"}
    recorded = recorded_environment()
    assert (recorded["OMP_NUM_THREADS"], recorded["FSDP_VERSION"]) == ("3", "2")
    assert "HOME" not in recorded
