"""Groups and mixes are given as flags or in a file, and wrong ones are refused with the name of the key."""

from typing import Any

import pytest

from upfield.common.command import Command, parse
from upfield.common.errors import InputError
from upfield.distributed.configuration import DataConfig, MixConfig, TrainConfig


def data_of(*flags: str) -> DataConfig:
    command = Command("train", TrainConfig, lambda _: 0)
    return parse(command, ["--data.shards", "set", "--run.out", "run", *flags]).data


def test_a_mix_is_given_as_a_whole_or_by_its_parts() -> None:
    expected = MixConfig(kind={"real": 0.5, "synthetic": 0.5})
    assert data_of("--data.mix", "{kind: {real: 0.5, synthetic: 0.5}}").mix == expected
    assert data_of("--data.mix.kind", "{real: 0.5, synthetic: 0.5}", "--data.mix.per", "batch").mix == MixConfig(
        kind=expected.kind, per="batch"
    )
    assert data_of("--data.mix.kind.real", "0.5", "--data.mix.kind.synthetic", "0.5").mix == expected
    assert data_of().mix.shares is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--data.groups", "3"),
            r"^data\.groups: expected a divisor of data\.batch_size 4, that is 1, 2, 4, found 3\.",
        ),
        (("--data.groups", "0"), r"^data\.groups: expected at least 1, found 0\."),
        (("--data.mix", "{kind: {real: 0.5, synthetic: 0.6}}"), r"^data\.mix\.kind: .*add up to 1, .*add up to 1\.1\."),
        (("--data.mix", "{kind: {}}"), r"^data\.mix\.kind: expected shares that add up to 1, found no shares"),
        (("--data.mix", "{cohort: {a: -1, b: 2}}"), r"^data\.mix\.cohort\.a: expected a share from 0 to 1, found -1"),
        (("--data.mix", "{kind: {real: 1}, cohort: {a: 1}}"), r"^data\.mix: kind and cohort cannot be combined\."),
        (("--data.mix.per", "epoch"), r"^data\.mix\.per: epoch has no effect without shares\."),
        (("--data.mix", "{kinds: {real: 1}}"), r"unknown key --data\.mix\.kinds \(did you mean kind\?\)"),
        (("--data.mix.kind.real", "half"), r'^--data\.mix\.kind\.real: expected a number, found "half"\.'),
        (("--data.mix", "{kind: {real: half}}"), r'^--data\.mix\.kind\.real: expected a number, found "half"\.'),
    ],
)
def test_wrong_groups_and_mixes_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data_of(*flags)


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (MixConfig(), {}),
        (MixConfig(kind={"synthetic": 1.0, "real": 0.0}), {"kind": {"synthetic": 1.0}, "per": "batch"}),
    ],
)
def test_mixes_with_equal_orders_are_recorded_as_equal(mix: MixConfig, expected: dict[str, Any]) -> None:
    assert mix.to_record() == expected
