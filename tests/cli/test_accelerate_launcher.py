"""The demo's launch does not depend on the user's own configuration of Accelerate."""

from pathlib import Path

import pytest
from accelerate.commands import launch

from upfield.cli.accelerate_launcher import launch_command


@pytest.mark.parametrize("processes", [1, 2])
def test_the_users_default_configuration_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: int
) -> None:
    default = tmp_path / "default_config.yaml"
    default.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 8\nnum_machines: 2\n"
        "mixed_precision: fp16\nfsdp_config: {fsdp_version: 2}\ndynamo_config: {dynamo_backend: INDUCTOR}\n"
    )
    monkeypatch.setattr(launch, "default_config_file", str(default))
    arguments = launch.launch_command_parser().parse_args([*launch_command(processes)[3:], "script.py"])
    args, _, _ = launch._validate_launch_command(arguments)
    assert (args.num_processes, args.num_machines, args.mixed_precision) == (processes, 1, "no")
    assert not args.use_fsdp
    assert args.multi_gpu == (processes > 1)
    assert str(args.dynamo_backend).lower() == "no"
