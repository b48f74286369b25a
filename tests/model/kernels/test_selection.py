"""The choice of kernels: plain PyTorch until a kernel is proved on the card, and refusals that say what to do."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from upfield.model.amir import Amir, AmirConfig
from upfield.model.blocks import ChannelAttention, ChannelNorm, GatedFeedForward
from upfield.model.kernels.selection import PROVED, choose_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_auto_takes_only_what_is_proved_on_this_kind_of_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    proved = {"one": frozenset({(9, 0)}), "two": frozenset({(8, 0)}), "three": frozenset()}
    assert choose_kernels("auto", GPU, proved) == {"one"}
    assert choose_kernels("on", GPU, proved) == proved.keys()
    assert choose_kernels("off", GPU, proved) == choose_kernels("auto", CPU, proved) == frozenset()


def test_kernels_that_cannot_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    network = Amir(AmirConfig.preset("tiny"))
    with pytest.raises(ValueError, match=r"on needs a CUDA GPU, and there is none here\. Choose auto or off"):
        network.use_kernels("on")
    with pytest.raises(ValueError, match="kernels: expected one of"):
        network.use_kernels("yes")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Install triton"):
        network.use_kernels("on")
    network.use_kernels("auto")


def test_every_kernel_has_a_module_that_it_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROVED.keys() <= {module.kernel for module in (ChannelNorm, ChannelAttention, GatedFeedForward)}
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    network = Amir(AmirConfig.preset("tiny"))
    network.use_kernels("on")
    assert {module.kernel for module in network.modules() if getattr(module, "fused", False)} == PROVED.keys()
    network.use_kernels("off")
    assert not any(getattr(module, "fused", False) for module in network.modules())


def test_the_network_needs_no_triton() -> None:
    program = "import sys, upfield.model.amir; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
