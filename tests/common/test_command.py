import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from upfield.common.command import Command, execute, from_tree, parse, to_yaml
from upfield.common.errors import InputError, RunError
from upfield.common.grammar.yaml_files import load_yaml
from upfield.distributed.train import COMMAND as TRAIN
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shard import COMMAND as SHARD


@dataclass(frozen=True)
class Optim:
    """How to step."""

    lr: float = 0.1
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates."""


@dataclass(frozen=True)
class Job:
    """Do something."""

    model: Path | None = None
    """A file."""
    scans: list[Path] = field(default_factory=list)
    """More files."""
    optim: Optim = field(default_factory=Optim)
    """How to step."""
    count: int = 1
    """How often."""
    quick: bool = False
    """Leave half out."""

    def __post_init__(self) -> None:
        """Refuse a count below 1."""
        if self.count < 1:
            raise ValueError(f"count: expected at least 1, found {self.count}")


JOB = Command("job", Job, lambda _: 0, positional=("model", "scans"))


def job(argv: list[str]) -> int:
    return execute(JOB, argv)


def job_with(run) -> Command:
    return Command("job", Job, run)


@pytest.fixture
def write_yaml(tmp_path):
    def write(text):
        (tmp_path / "job.yaml").write_text(text)
        return tmp_path / "job.yaml"

    return write


def refusal(*arguments):
    with pytest.raises(InputError) as caught:
        parse(JOB, [str(argument) for argument in arguments])
    return str(caught.value)


def test_an_unknown_key_is_reported_with_its_file_and_the_known_keys(write_yaml):
    file = write_yaml("optim: {lr: 1.0, beta: [0, 0]}")
    assert refusal("--config", file) == (
        f"{file}: unknown key optim.beta (did you mean betas?). Known keys: betas, lr."
    )


def test_an_unknown_key_inside_a_list_is_reported_with_its_position(write_yaml):
    file = write_yaml("cohorts: [{name: a, high: 'a/{subject}.nii'}, {name: b, hihg: 'b/{subject}.nii'}]")
    with pytest.raises(
        InputError, match=r"unknown key cohorts\[1\].hihg \(did you mean high\?\)\. Known keys: align, "
    ):
        parse(SHARD, ["--config", str(file)])


def test_an_unknown_flag_is_reported_with_the_known_flags():
    message = refusal("--optim.lrr", "1")
    assert message.startswith("unknown flag --optim.lrr (did you mean --optim.lr?). Known flags: ")
    assert "--quick" in message


def test_flags_are_never_abbreviated():
    assert "unknown flag --coun (did you mean --count?)" in refusal("--coun", "2")


@pytest.mark.parametrize("arguments", [["--count"], ["--count", "--quick"], ["--model", "--count=2"]])
def test_a_flag_without_its_value_is_refused(arguments):
    assert f"{arguments[0]}: the value is missing. Write {arguments[0]} VALUE." in refusal(*arguments)


@pytest.mark.parametrize("text", ["count: much", "count: [1]", "count: 1.5", "optim: {lr: fast}", "optim: 3", "[1, 2]"])
def test_a_value_of_the_wrong_type_is_refused(write_yaml, text):
    key = text.partition(":")[0] if ":" in text else "top level"
    assert key in refusal("--config", write_yaml(text))


def test_a_flag_of_the_wrong_type_is_refused_with_its_name():
    assert "count" in refusal("--count", "much")


def test_the_wrong_flag_is_reported_even_if_yaml_reads_another_flag_differently():
    flags = ["--data.shards", "a", "--run.out", "b", "--run.precision", "no", "--data.batch_size", "many"]
    with pytest.raises(InputError, match=r"^--data\.batch_size: expected a whole number"):
        parse(TRAIN, flags)


def test_a_refusal_by_the_schema_keeps_its_message():
    assert "count: expected at least 1, found 0" in refusal("--count", "0")


def test_positional_flag_and_key_mean_the_same(write_yaml):
    file = write_yaml("{model: a.onnx, scans: [b.nii, c.nii]}")
    expected = Job(Path("a.onnx"), [Path("b.nii"), Path("c.nii")])
    assert parse(JOB, ["a.onnx", "b.nii", "c.nii"]) == expected
    assert parse(JOB, ["--model", "a.onnx", '--scans=["b.nii", "c.nii"]']) == expected
    assert parse(JOB, ["--config", str(file)]) == expected


def test_positionals_and_flags_may_be_mixed():
    assert parse(JOB, ["a.onnx", "--count", "2", "b.nii", "--quick"]) == Job(
        Path("a.onnx"), [Path("b.nii")], count=2, quick=True
    )


def test_a_positional_with_a_suffix_takes_only_arguments_that_end_in_it():
    command = replace(JOB, suffixes={"model": ".onnx"})
    assert parse(command, ["b.nii", "c.nii"]) == Job(None, [Path("b.nii"), Path("c.nii")])
    assert parse(command, ["a.onnx", "b.nii"]) == Job(Path("a.onnx"), [Path("b.nii")])
    assert parse(command, ["b.nii", "--model", "a"]) == Job(Path("a"), [Path("b.nii")])


def test_more_positionals_than_fields_are_refused():
    with pytest.raises(InputError, match=r"too many arguments: out\. The command takes flags only"):
        parse(SHARD, ["out"])


def test_later_arguments_override_the_file_and_leave_the_rest(write_yaml):
    file = write_yaml("{count: 2, optim: {lr: 1.0}, quick: true}")
    config = parse(JOB, ["--config", str(file), "--count", "3", "--optim.betas", "[0.5, 0.6]", "--quick=false"])
    assert config == Job(optim=Optim(1.0, (0.5, 0.6)), count=3)


def test_a_later_file_overrides_an_earlier_one(tmp_path, write_yaml):
    (tmp_path / "more.yaml").write_text("count: 5")
    first = write_yaml("{count: 2, quick: true}")
    assert parse(JOB, ["--config", str(first), f"--config={tmp_path}/more.yaml"]) == Job(count=5, quick=True)


def test_negative_numbers_are_values():
    assert parse(JOB, ["--optim.lr", "-1e-3"]).optim.lr == -1e-3


def test_printed_configuration_reads_back_to_the_same(tmp_path, write_yaml, run_cli):
    file = write_yaml("{count: 2, model: a.onnx, scans: [b.nii]}")
    code, printed, _ = run_cli(job, "--config", file, "--optim.lr", "0.5", "--print_config")
    assert code == 0
    (tmp_path / "printed.yaml").write_text(printed)
    expected = Job(Path("a.onnx"), [Path("b.nii")], Optim(0.5), 2)
    assert (
        parse(JOB, ["--config", f"{tmp_path}/printed.yaml"])
        == from_tree(Job, yaml.safe_load(printed), "printed")
        == expected
    )
    assert run_cli(job, "--config", tmp_path / "printed.yaml", "--print_config")[1] == printed


def test_a_configuration_as_yaml_reads_back_to_the_same():
    config = ShardConfig("out", context=2, root=Path("/data"))
    assert from_tree(ShardConfig, yaml.safe_load(to_yaml(config)), "written") == config


def test_a_tree_with_a_value_of_the_wrong_type_is_refused_with_the_trees_name():
    with pytest.raises(InputError, match=r"^run/config.yaml: .*count"):
        from_tree(Job, {"count": "much"}, "run/config.yaml")


def test_the_root_is_the_folder_of_the_file_that_holds_the_key(tmp_path, write_yaml):
    file = write_yaml("cohorts: []")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/seed.yaml").write_text("seed: 3")
    files = ["--config", str(file), "--config", f"{tmp_path}/other/seed.yaml"]
    assert parse(SHARD, [*files, "--out", "x"]).root == tmp_path
    assert parse(SHARD, [*files, "--out", "x", "--root", "/data"]).root == Path("/data")


def test_help_shows_every_field_with_its_doc_and_exits_0(run_cli):
    code, out, err = run_cli(job, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: upfield job [MODEL] [SCANS...] [--config FILE.yaml]")
    assert all(words in out for words in ("--optim.lr", "Step size.", "Leave half out.", "--debug"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config", "absent.yaml", "--out", "x"],
        ["--out", "x", "--jobs", "many"],
        ["--out", "x", "--geometry.low_shape", "[1, 2, 3]"],
        ["--out", "x", "--cohorts", "[{name: a-b, high: 'x/{subject}'}]"],
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run_cli, arguments):
    from upfield.sharding.shard import main

    code, out, err = run_cli(main, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("upfield shard: error: ")
    assert len(err.splitlines()) == 1


def test_a_missing_required_value_is_named(run_cli):
    assert (
        "--out is missing. Give it on the command line or in the configuration file."
        in run_cli(lambda argv: execute(SHARD, argv))[2]
    )


def test_a_file_that_is_not_yaml_is_refused(write_yaml):
    assert "job.yaml: line 1, column 10: this is not valid YAML (" in refusal("--config", write_yaml("{count: [}"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("expected bread,\n  found stones"), 2),
        (FileNotFoundError(2, "No such file", "bread"), 2),
        (OSError(28, "No space left on device", "bread"), 1),
        (RunError("bread burnt"), 1),
    ],
)
def test_expected_errors_are_one_line_without_a_traceback_unless_debugging(run_cli, error, code):
    def fail(_):
        raise error

    def main(argv):
        return execute(job_with(fail), argv)

    found, _, err = run_cli(main)
    assert found == code
    assert err.startswith("upfield job: error: ")
    assert "bread" in err
    assert len(err.splitlines()) == 1
    found, _, err = run_cli(main, "--debug")
    assert found == code
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("upfield job: error: ")


def test_an_unexpected_exception_shows_its_traceback_and_exits_1(run_cli):
    code, _, err = run_cli(lambda argv: execute(job_with(lambda _: {}["absent"]), argv))
    assert code == 1
    assert "KeyError: 'absent'" in err
    assert err.splitlines()[-1] == (
        "upfield job: error: this is a bug in upfield, not in your input. Please report it with the traceback above."
    )


def test_the_exit_code_is_the_one_that_the_command_returns():
    assert execute(job_with(lambda _: 7), []) == 7
    assert execute(job_with(lambda _: None), []) == 0


def test_an_empty_file_sets_no_key(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert parse(JOB, ["--config", f"{tmp_path}/empty.yaml"]) == parse(JOB, [])


@pytest.mark.parametrize("text", ["true", "True", "false"])
def test_a_switch_may_have_its_value_after_a_space(text):
    assert parse(JOB, ["--quick", text, "a.onnx"]).quick == (text.lower() == "true")
    assert parse(JOB, ["--quick", "a.onnx"]).quick


def test_text_that_begins_like_a_boolean_is_text():
    assert load_yaml("false {url}") == "false {url}"


def test_the_keys_of_list_items_have_their_own_help(run_cli):
    code, out, _ = run_cli(lambda argv: execute(SHARD, argv), "--cohorts.help")
    assert code == 0
    assert "crop_pad" in out
    assert "Registration of the high field to the low field" in " ".join(out.split())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("fit: crop", 'cohorts[1].fit: expected resize, crop_pad or null, found "crop"'),
        ("split: {val: '02'}", "cohorts[1]: cohort b: split.val: expected a number or a list of ids, found '02'"),
        ("synthetic: two", 'cohorts[1].synthetic: expected a whole number, found "two"'),
    ],
)
def test_a_wrong_value_inside_a_list_is_reported_with_file_and_position(write_yaml, run_cli, key, message):
    file = write_yaml(f"{{cohorts: [{{name: a, high: '{{subject}}'}}, {{name: b, high: '{{subject}}', {key}}}]}}")
    code, _, err = run_cli(lambda argv: execute(SHARD, argv), "--config", file)
    assert code == 2
    assert f"{file}: {message}" in err


def test_sigterm_is_reported_like_an_interrupt(run_cli):
    code, _, err = run_cli(lambda argv: execute(job_with(lambda _: signal.raise_signal(signal.SIGTERM)), argv))
    assert code == 130
    assert "interrupted" in err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--geometry=3", "--geometry: expected keys and values, found 3."),
        ("--geometry={low_shap: [1, 2, 3]}", "unknown key --geometry.low_shap (did you mean low_shape?)"),
        ("--cohorts=[{name: a, hihg: b}]", "unknown key --cohorts[0].hihg (did you mean high?)"),
        ("--cohorts+={name: a}", "--cohorts+[0]: cohort a: expected the pattern high or labels, found none. Add it."),
    ],
)
def test_a_wrong_value_of_a_group_or_a_list_is_named_with_its_place(flag, message):
    with pytest.raises(InputError) as caught:
        parse(SHARD, ["--out", "x", flag])
    assert message in str(caught.value)


def test_a_quoted_number_on_the_command_line_is_refused_in_plain_words():
    assert refusal("--optim.lr", '"1e-3"') == '--optim.lr: expected a number, found "1e-3".'


@pytest.mark.parametrize(("text", "value"), [("no", False), ("off", False), ("yes", True), ("on", True)])
def test_a_boolean_flag_understands_yes_and_no(text, value):
    assert parse(JOB, ["--quick", text]).quick is value


def test_a_configuration_that_does_not_fit_is_not_printed(write_yaml, run_cli):
    file = write_yaml("optim: 3")
    code, out, err = run_cli(job, "--config", file, "--print_config")
    assert (code, out) == (2, "")
    assert f"{file}: optim: expected keys and values, found 3." in err
