"""Weights that FSDP splits over processes train, average, save and resume like whole ones."""

import sys
from pathlib import Path

import pytest
from runs import run
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("split_weights.py")


def test_a_learner_with_split_weights_is_saved_whole_and_goes_on_from_it(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run(*torchrun, str(SCRIPT), str(tmp_path))
    assert done.returncode == 0, done.stderr
    split, resumed, whole, alone = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("split", "resumed", "whole", "alone")
    )
    assert split.keys() == alone.keys()
    kinds = {name.partition("/")[0] for name in split}
    assert kinds == {"weights", "average", "optimizer"}
    for name, tensor in split.items():
        assert tensor.equal(resumed[name]), name
        for other in (whole, alone):
            assert other[name].flatten().tolist() == pytest.approx(tensor.flatten().tolist(), abs=1e-5), name
