"""Deterministic algorithms: what replaces an operator returns its values, and settings are restored."""

import os
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from upfield.common.errors import InputError
from upfield.model.losses import ms_ssim_loss, ssim_loss
from upfield.model.numerics import CUBLAS_WORKSPACE, deterministic_algorithms, pad_by_index, use_exact_float32


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, CUBLAS_WORKSPACE, "")  # so that the variable is restored afterwards
    del os.environ[CUBLAS_WORKSPACE]


def operators(result: Tensor) -> set[str]:
    """Return the names of all operators that the gradient of a result passes."""
    names: set[str] = set()
    nodes = [result.grad_fn]
    while nodes:
        if (node := nodes.pop()) is not None:
            names.add(node.name())
            nodes += [function for function, _ in node.next_functions]
    return names


def test_padding_by_index_equals_padding_by_reflection() -> None:
    image = torch.rand(2, 1, 7, 9)
    assert pad_by_index(image, (3, 2, 5, 6)).equal(torch.nn.functional.pad(image, (3, 2, 5, 6), mode="reflect"))


@pytest.mark.parametrize(("loss", "size"), [(ssim_loss, (31, 27)), (ms_ssim_loss, (181, 177))])
def test_deterministic_losses_pad_without_reflection_and_have_the_same_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], size: tuple[int, int]
) -> None:
    restored, high = torch.rand(2, 1, *size, requires_grad=True), torch.rand(2, 1, *size)
    plain = loss(restored, high)
    with deterministic_algorithms():
        deterministic = loss(restored, high)
    assert any("Reflection" in name for name in operators(plain))
    assert not any("Reflection" in name for name in operators(deterministic))
    assert plain.equal(deterministic)
    gradients = [torch.autograd.grad(value, restored)[0] for value in (plain, deterministic)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_settings_hold_inside_the_block_only() -> None:
    before = torch.backends.cudnn.deterministic
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ[CUBLAS_WORKSPACE] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic == before


def test_a_cublas_that_may_have_started_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(InputError, match=r"this process has already used a GPU\. Set CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        deterministic_algorithms().__enter__()
    os.environ[CUBLAS_WORKSPACE] = ":0:0"
    with pytest.raises(InputError, match=r"expected CUBLAS_WORKSPACE_CONFIG to be :4096:8 or :16:8, found :0:0"):
        deterministic_algorithms().__enter__()
    os.environ[CUBLAS_WORKSPACE] = ":16:8"
    with deterministic_algorithms():
        pass


def test_float32_is_exact_and_no_version_of_torch_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use_exact_float32()
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
