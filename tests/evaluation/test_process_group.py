"""Volumes are read and measured one after the other."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from identity_model import IdentityModel

from upfield.common.errors import InputError
from upfield.evaluation import measure, workflow
from upfield.evaluation.configuration import EvaluateConfig
from upfield.evaluation.measure import MeasurementSettings
from upfield.evaluation.measurements import CUBIC, MODEL
from upfield.evaluation.process_group import measure_split
from upfield.evaluation.stacked_pairs import StackedPair, read_pair
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import group_volumes

VOLUMES = 9


def test_one_volume_is_in_memory_at_a_time(tiny_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    most = {"pairs": 0, "images": 0}

    def read_and_count(split: ShardSplit, pair: Any) -> StackedPair:
        most["pairs"] = max(most["pairs"], sum(isinstance(one(), StackedPair) for one in alive))
        stacked = read_pair(split, pair)
        alive.append(weakref.ref(stacked))
        return stacked

    measured = measure.measure_volume

    def measure_and_count(*arguments: Any) -> Any:
        figures, images = measured(*arguments)
        alive.append(weakref.ref(images))
        most["images"] = max(most["images"], sum(isinstance(one(), type(images)) for one in alive))
        return figures, images

    monkeypatch.setattr(measure, "read_pair", read_and_count)
    monkeypatch.setattr(measure, "measure_volume", measure_and_count)
    split = ShardSplit(tiny_shards, "train")
    settings = MeasurementSettings({CUBIC: None, MODEL: IdentityModel()}, 4, perturb=False, device=torch.device("cpu"))
    assert len(measure_split(settings, split).volumes) == VOLUMES
    assert most["pairs"] == 0, "a volume is still there when the next one is read"
    # These are the images of the volume that the report shows, of the previous one, and of the current one.
    assert most["images"] <= 3


def test_an_evaluation_computes_float32_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise InputError("stopped here")

    monkeypatch.setattr(workflow, "check_input", lambda _: None)
    monkeypatch.setattr(workflow, "check_reports", lambda *_: None)
    monkeypatch.setattr(workflow, "leave_busy_cores", stop)  # which the measurement begins with
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(InputError, match="stopped here"):
        workflow.evaluate_models(EvaluateConfig([Path("run")], shards=Path("shards"), out=Path("out")))
    assert not torch.backends.cudnn.allow_tf32


class FailingModel(IdentityModel):
    """Fails on the slices of one volume."""

    def __init__(self, volume: StackedPair) -> None:
        super().__init__()
        self.slice = volume.low[len(volume.low) // 2]

    def restore(self, low: np.ndarray) -> np.ndarray:
        if any(np.array_equal(one, self.slice) for one in low):
            raise KeyError("a fault")
        return super().restore(low)


def test_a_volume_on_which_one_method_fails_is_measured_for_the_others(
    tiny_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = ShardSplit(tiny_shards, "train")
    bad = read_pair(split, group_volumes(split)[4])
    restorers = {CUBIC: None, MODEL: IdentityModel(), "failing": FailingModel(bad)}
    settings = MeasurementSettings(restorers, 4, perturb=False, device=torch.device("cpu"))
    measured = measure_split(settings, split)
    assert [(failure.volume, failure.method) for failure in measured.failures] == [(bad.name, "failing")]
    assert f"{bad.name}: failing: KeyError: 'a fault'. This is a bug in upfield" in capsys.readouterr().err
    assert len(measured.with_all([CUBIC, MODEL])) == VOLUMES
    assert [volume.name for volume in measured.volumes if "failing" not in volume.slices] == [bad.name]
    assert len(measured.with_all(restorers)) == VOLUMES - 1
    assert measured.methods == set(restorers)
