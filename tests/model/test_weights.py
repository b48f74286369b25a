"""Weight files hold the network's sizes, and published checkpoints load."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from upfield.model.amir import Amir, AmirConfig
from upfield.model.weights import load_model, read_weights, save_model


@pytest.fixture(scope="module")
def network() -> Amir:
    return Amir(AmirConfig.preset("tiny")).eval()


def test_a_saved_network_is_read_with_its_sizes(network: Amir, tmp_path: Path) -> None:
    save_model(network, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == network.config
    image = torch.rand(1, 1, 24, 24)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))


def test_a_published_checkpoint_loads_strictly(network: Amir, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"params": state}, tmp_path / "net.pth")
    Amir(network.config).load_state_dict(read_weights(tmp_path / "net.pth"), strict=True)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"params": print}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="not a weight file that holds only tensors"):
        read_weights(tmp_path / "bad.pth")


def test_weights_without_sizes_are_refused(network: Amir, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="not a weight file of upfield: the metadata holds no network sizes"):
        load_model(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("name", ["text.safetensors", "text.pth"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not weights")
    with pytest.raises(ValueError, match="not a weight file that holds only tensors"):
        read_weights(tmp_path / name)
