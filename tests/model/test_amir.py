"""The network agrees with the published one in its tensors and parameters, computed as on CPUs and as on GPUs."""

import copy
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from upfield.model.amir import Amir, AmirConfig, Checkpointing, noise_shapes
from upfield.model.blocks import ChannelAttention, DeviceDependent, TransformerBlock
from upfield.model.configuration import PRESETS, Preset
from upfield.model.routing import (
    ChannelRouting,
    Expert,
    clean_gates,
    descending_ranks,
    load_loss,
    log_mixture,
    noisy_gates,
    top_k_log_gates,
)

GOLDEN = load_file(Path(__file__).parent / "amir_small.safetensors")
CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)
SMALL = AmirConfig(dim=8, num_blocks=(1, 2, 1, 2), num_refinement_blocks=1)


def take_path(network: Amir, path: str) -> Amir:
    """Make the network compute as it does on this device."""
    for module in network.modules():
        if isinstance(module, DeviceDependent):
            module.gpu_path = path == "gpu"
    return network


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def small(request: pytest.FixtureRequest) -> Amir:
    network = take_path(Amir(SMALL), request.param)
    state = {k.removeprefix("state_dict."): v for k, v in GOLDEN.items() if k.startswith("state_dict.")}
    network.load_state_dict(state, strict=True)
    return network.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_output_and_instruction_match_the_published_network(small: Amir) -> None:
    close(small.dict_generator(GOLDEN["input"]), GOLDEN["instruction"])
    close(small(GOLDEN["input"]), GOLDEN["output"])


@torch.no_grad()
@pytest.mark.parametrize("level", [1, 2, 3])
def test_expert_mixtures_match_the_published_network(small: Amir, level: int) -> None:
    mixture = getattr(small, f"spatial_routing_encoder_level{level}").moe
    x, instruction = GOLDEN[f"level{level}.moe_input"], GOLDEN[f"level{level}.moe_instruction"]
    pixels = x.flatten(2).transpose(1, 2)
    mixed, usage = mixture(pixels, instruction, None)
    assert usage is None
    close(mixed.transpose(1, 2).reshape(x.shape), GOLDEN[f"level{level}.moe_output"])
    gates = clean_gates(mixture._project(pixels, instruction, mixture.w_gate))
    close(load_loss(gates.usage).reshape(1), GOLDEN[f"level{level}.eval_load_loss"])


@torch.no_grad()
@pytest.mark.parametrize("by_rank", [False, True])
def test_training_gates_and_load_match_the_published_network(small: Amir, by_rank: bool) -> None:
    mixture = small.spatial_routing_encoder_level2.moe
    tokens = GOLDEN["gating.tokens"]
    scale = torch.nn.functional.softplus(tokens @ mixture.w_noise) + 0.01
    gates = noisy_gates(tokens @ mixture.w_gate, scale, GOLDEN["gating.noise"], by_rank)
    close(gates.log_gates.exp(), GOLDEN["gating.gates"])
    close(gates.usage[1], GOLDEN["gating.load"])
    close(load_loss(gates.usage).reshape(1), GOLDEN["gating.loss"])


# Those of the first two are published.
PARAMETERS = {"official": 23_540_498, "report": 22_248_687, "small": 1_343_456, "tiny": 330_129}


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_can_be_built_and_has_its_number_of_parameters(preset: str) -> None:
    with torch.device("meta"):
        network = Amir(AmirConfig.preset(preset))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[preset]


def test_the_presets_have_the_names_that_the_command_accepts() -> None:
    assert get_args(Preset) == tuple(PRESETS)


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 9), (17, 30), (221, 20), (48, 40)])
def test_slices_of_any_size_keep_their_size_and_equal_the_padded_image(small: Amir, size: tuple[int, int]) -> None:
    height, width = size
    image = torch.rand(1, 1, height, width)
    padded = torch.nn.functional.pad(image, (0, -width % 8, 0, -height % 8), mode="reflect")
    restored = small(image)
    assert restored.shape == image.shape
    close(restored, small(padded)[..., :height, :width])


def test_slices_too_small_for_the_instruction_network_are_refused(small: Amir) -> None:
    with pytest.raises(ValueError, match="expected slices of at least 9 x 9 pixels, found 12 x 8"):
        small(torch.rand(1, 1, 12, 8))


def test_training_returns_the_load_loss_and_every_parameter_has_a_gradient() -> None:
    network = Amir(AmirConfig.preset("tiny")).train()
    restored, load_loss = network(torch.rand(2, 1, 24, 16))
    (restored.mean() + load_loss).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert all(g is not None and g.any() for name, g in gradients.items() if "experts" in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("content", ["noise", "black"])
@pytest.mark.parametrize("path", ["cpu", "gpu"])
def test_value_and_gradients_stay_finite_with_dead_channels(dtype: torch.dtype, content: str, path: str) -> None:
    network = take_path(Amir(AmirConfig.preset("tiny")), path).train()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ChannelAttention):
                module.qkv.weight[::3] = 0
    image = torch.rand(2, 1, 24, 16) * (content == "noise")
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        restored, load_loss = network(image)
    (restored.float().square().mean() + load_loss).backward()
    assert restored.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_small_channel_scales_are_not_lost_in_half_precision() -> None:
    routing = ChannelRouting(8)
    torch.nn.init.constant_(routing.gamma, 1e-2)  # 1.005 is 1.0078 in bf16
    x, instruction = torch.rand(1, 8, 64, 64), torch.zeros(1, 256)
    gain = (routing(x.bfloat16(), instruction).float() / x.bfloat16().float()).mean() - 1
    assert gain.item() == pytest.approx((routing(x, instruction) / x).mean().item() - 1, rel=0.2)


def test_images_stay_channels_last_when_pixel_shuffle_changes_their_memory_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PixelShuffle", "PixelUnshuffle"):  # as on a GPU
        module = getattr(torch.nn, name)
        forward = module.forward
        monkeypatch.setattr(module, "forward", lambda self, x, forward=forward: forward(self, x).contiguous())
    network, seen = Amir(SMALL).eval(), []
    for module in network.modules():
        if isinstance(module, TransformerBlock):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].is_contiguous()))
    with torch.no_grad():
        network(torch.rand(2, 1, 24, 16))
    assert seen
    assert all(seen)


def test_no_step_reads_a_value_that_would_make_the_host_wait_for_a_gpu() -> None:
    with FakeTensorMode():  # Fake tensors have no values, and reading a value raises an error.
        network = take_path(Amir(AmirConfig.preset("tiny")), "gpu").train()
        restored, load_loss = network(torch.rand(2, 1, 24, 16))
        (restored.mean() + load_loss).backward()


def test_the_path_for_gpus_has_the_values_and_gradients_of_that_for_cpus() -> None:
    # At the first two levels, no number of channels is a multiple of 8.
    config = AmirConfig(dim=10, num_blocks=(1, 1, 0, 1), num_refinement_blocks=0, heads=(2, 2, 4, 8), num_experts=3)
    network = Amir(config).double().train()
    image = torch.rand(1, 1, 16, 24, dtype=torch.float64)
    noise = [torch.randn(1, *shape, dtype=torch.float64) for shape in noise_shapes(config, 16, 24)]
    results = []
    for one in (take_path(copy.deepcopy(network), path) for path in ("cpu", "gpu")):
        restored, load_loss = one(image, noise)
        (restored.square().mean() + load_loss).backward()
        results.append([restored, load_loss, *(parameter.grad for parameter in one.parameters())])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-9, atol=1e-12)


def test_gates_by_rank_have_the_values_and_gradients_of_topk() -> None:
    for experts in (3, 4, 7):
        inputs = [torch.randn(50, experts), torch.rand(50, experts) + 0.1, torch.randn(50, experts)]
        results = []
        for by_rank in (False, True):
            leaves = [tensor.double().requires_grad_() for tensor in inputs]
            gates = noisy_gates(leaves[0], leaves[1], leaves[2], by_rank)
            (gates.log_gates.exp().square().sum() + gates.usage.square().sum()).backward()
            results.append([*gates, *(leaf.grad for leaf in leaves)])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)


def test_the_first_of_equal_logits_ranks_first() -> None:
    assert descending_ranks(torch.tensor([[1.0, 2, 1, 2], [0, 0, 0, 0]])).tolist() == [[2, 0, 3, 1], [0, 1, 2, 3]]


def test_two_experts_are_always_both_used(small: Amir) -> None:
    clean = torch.randn(50, 2)
    gates = noisy_gates(clean, torch.ones(50, 2), torch.randn(50, 2))
    assert gates.usage[1].tolist() == [50, 50]
    assert gates.usage[0].sum().item() == pytest.approx(50, rel=1e-5)


@torch.no_grad()
def test_evaluation_ignores_noise(small: Amir) -> None:
    image = torch.rand(1, 1, 16, 16)
    noise = [100 * torch.randn(1, *shape) for shape in noise_shapes(SMALL, 16, 16)]
    assert torch.equal(small(image, noise), small(image))


def test_unknown_checkpointing_is_refused(small: Amir) -> None:
    with pytest.raises(ValueError, match="checkpointing: expected one of"):
        small.set_checkpointing("ful")  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def test_context_restores_the_centre_slice() -> None:
    network = Amir(AmirConfig(in_channels=5, dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)).eval()
    network.output.weight.zero_()
    low = torch.rand(2, 5, 16, 24)
    close(network(low), low[:, 2:3])


def test_mixture_stays_finite_where_the_published_exponential_overflows() -> None:
    outputs = [torch.full((3, 2), value, dtype=torch.float16) for value in (100.0, -100.0, 50.0, 0.0)]
    log_gates = top_k_log_gates(torch.tensor([[1.0, 2.0, 0.0, -1.0]]).expand(3, 4))
    mixed = log_mixture(outputs, log_gates)
    assert torch.isfinite(mixed).all()
    assert mixed[0, 0].item() == pytest.approx(100 + log_gates[0, 0].item(), abs=1e-3)


def test_mixture_and_its_gradient_equal_the_published_formula() -> None:
    outputs = torch.randn(4, 7, 3, dtype=torch.float64, requires_grad=True)
    log_gates = top_k_log_gates(torch.randn(7, 4, dtype=torch.float64))
    published = (log_gates.exp().T.unsqueeze(-1) * outputs.exp()).sum(0).log()
    mixed = log_mixture(list(outputs), log_gates)
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, published)
    ours, theirs = (torch.autograd.grad(y.sum(), outputs, retain_graph=True)[0] for y in (mixed, published))
    torch.testing.assert_close(ours, theirs)


def test_mixture_returns_the_published_value_where_every_exponential_underflows() -> None:
    outputs = [torch.full((1, 1), value, requires_grad=True) for value in (-200.0, -210.0)]
    mixed = log_mixture(outputs, torch.tensor([[0.5, 0.5]]).log())
    assert mixed.item() == pytest.approx(math.log(2.22e-16))
    mixed.backward()
    assert all(output.grad is not None and output.grad.item() == 0 for output in outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_routing_stays_finite_under_autocast_with_expert_outputs_of_a_hundred(
    dtype: torch.dtype, training: bool
) -> None:
    mixture = Amir(AmirConfig.preset("tiny")).spatial_routing_encoder_level1.moe
    with torch.no_grad():
        for expert, value in zip(mixture.experts, (100.0, -100.0, 100.0, -100.0), strict=True):
            assert isinstance(expert, Expert)
            expert.fc2.weight.zero_()
            expert.fc2.bias.fill_(value)
    pixels = torch.rand(2, 30, 8, requires_grad=True)
    noise = torch.randn(2, 30, 4) if training else None
    with torch.autocast("cpu", dtype):
        mixed, usage = mixture(pixels, torch.rand(2, 8), noise)
    (mixed.float().sum() + (0 if usage is None else load_loss(usage))).backward()
    assert torch.isfinite(mixed).all()
    assert mixed.abs().max() > 90
    assert pixels.grad is not None
    assert torch.isfinite(pixels.grad).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_half_precision_returns_nearly_the_same_image(small: Amir, dtype: torch.dtype, tolerance: float) -> None:
    image = 1000 * GOLDEN["input"]  # products of these channels overflow in half precision
    with torch.no_grad():
        expected = small(image)
        with torch.autocast("cpu", dtype):
            found = small(image)
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


def test_gradients_in_half_precision_are_sums_in_float32() -> None:
    torch.manual_seed(0)
    network = Amir(AmirConfig.preset("tiny")).train()
    low, high = torch.rand(2, 1, 1, 128, 128).unbind(0)
    noise = [torch.randn(1, *shape) for shape in noise_shapes(network.config, 128, 128)]

    def gradients(half: bool) -> dict[str, torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            restored, load = network(low, noise)
        ((restored.float() - high).abs().mean() + load.float()).backward()
        return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}

    exact, half = gradients(False), gradients(True)
    errors = {name: float((half[name] - exact[name]).norm() / exact[name].norm()) for name in exact}
    assert {name: error for name, error in errors.items() if error > 0.2} == {}


def test_checkpointing_changes_neither_output_nor_gradients(small: Amir) -> None:
    image = torch.rand(1, 1, 24, 16)
    noise = [torch.randn(1, *shape) for shape in noise_shapes(SMALL, 24, 16)]
    results = []
    for checkpointing in CHECKPOINTING:
        network = Amir(SMALL).train()
        network.load_state_dict(small.state_dict())
        network.set_checkpointing(checkpointing)
        restored, load_loss = network(image, noise)
        (restored.square().mean() + load_loss).backward()
        results.append([restored, load_loss, *(parameter.grad for parameter in network.parameters())])
    for one, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wrong", [{"in_channels": 2}, {"dim": 7}, {"heads": (1, 5, 4, 8)}, {"num_experts": 1}])
def test_sizes_that_cannot_be_built_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"expected .* found"):
        AmirConfig(**wrong)
    with pytest.raises(ValueError, match=", ".join(PRESETS)):
        AmirConfig.preset("huge")
