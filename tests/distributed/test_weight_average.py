"""The average of the weights follows its formula, and swapping it with the weights changes neither."""

import pytest
import torch

from upfield.distributed.weight_average import WeightAverage


def test_the_average_follows_its_formula_and_swaps_exactly() -> None:
    layer = torch.nn.Linear(3, 2)
    average = WeightAverage(layer, 0.6)
    expected = [parameter.detach().clone() for parameter in layer.parameters()]
    for updates in range(1, 9):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(updates)
        decay = min(0.6, (1 + updates) / (10 + updates))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, layer.parameters(), strict=True)]
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    with average.swapped_in():
        for parameter, e in zip(layer.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), e)
    assert all(parameter.equal(b) for parameter, b in zip(layer.parameters(), before, strict=True))


def test_weights_are_restored_if_the_block_fails() -> None:
    layer = torch.nn.Linear(1, 1)
    before = layer.weight.detach().clone()
    average = WeightAverage(layer, 0.5)
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(KeyError), average.swapped_in():
        raise KeyError
    assert layer.weight.detach().equal(before + 1)
