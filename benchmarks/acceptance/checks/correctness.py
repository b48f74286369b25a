"""The network on this device against the published tensors and against the CPU in float32."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from acceptance.kernel_parity import DTYPES, PRESETS, KernelComparisons
from acceptance.measuring import joint_error, largest_difference, relative_error, share_beyond
from acceptance.report import Report
from acceptance.stepping import BareStep
from acceptance.tracing import WHOLE_SLICE, depthwise_sizes
from acceptance.waits import report_waits
from upfield.model.amir import Amir, AmirConfig, Checkpointing
from upfield.model.blocks import DeviceDependent, depthwise
from upfield.model.numerics import use_exact_float32

GOLDEN = Path(__file__).resolve().parents[3] / "tests/model/amir_small.safetensors"
SMALL = AmirConfig(dim=8, num_blocks=(1, 2, 1, 2), num_refinement_blocks=1)
SIZES = ((9, 9), (17, 30), (221, 20), (48, 40), (223, 201))
HALF = {"bf16": (torch.bfloat16, 3e-2), "fp16": (torch.float16, 5e-3)}
# The relative error of a product is about 3e-4 in TF32 and 1e-6 in float32.
FLOAT32_TOLERANCE = 1e-4
# If two experts have almost equal logits, rounding decides between them, and the pixels around differ by more.
# Half precision decides more often. A single wrong row or column of a slice is 0.5% of its pixels.
SHARE_BEYOND, HALF_SHARE_BEYOND = 2e-3, 1e-2
# Variants of the gradients: on the path of the other device, or with all kernels.
OTHER_PATH, KERNELS = "_path_of_the_other_device", "_with_kernels"
GRADIENT_TOLERANCE = {"no": 5e-3, "bf16": 0.3, "fp16": 0.1}


def run(report: Report) -> None:
    """Run all parts; an error in one does not stop the next."""
    use_exact_float32()
    # Other processes compile and compare the kernels in the meantime.
    comparisons = KernelComparisons(report)
    parts = (compare_golden, compare_official, compare_gradients, compare_depthwise, report_waits, comparisons.report)
    for part in parts:
        try:
            part(report)
        except Exception as error:
            report.fail(part.__name__, error)


def compare_golden(report: Report) -> None:
    """Compare the small published network: float32, both half precisions, and sizes that are not multiples of 8."""
    with safe_open(GOLDEN, framework="pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a file is no dictionary
    host = Amir(SMALL)
    host.load_state_dict({k.removeprefix("state_dict."): v for k, v in golden.items() if k.startswith("state_dict.")})
    network, host = Amir(SMALL).eval().to(report.device), host.eval()
    network.load_state_dict(host.state_dict())
    image, output = golden["input"].to(report.device), golden["output"]
    with torch.no_grad():
        pairs = {"golden_output": (network(image), output)}
        pairs["golden_instruction"] = (network.dict_generator(image), golden["instruction"])
        for height, width in SIZES:
            slices = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(height))
            pairs[f"size_{height}x{width}"] = (network(slices.to(report.device)), host(slices))
        for name, (found, expected) in pairs.items():
            apart = largest_difference(found, expected)
            report.figure(f"{name}_largest_difference", apart)
            share = share_beyond(found, expected, FLOAT32_TOLERANCE)
            report.expect(f"{name} is that of float32 on the CPU", share < SHARE_BEYOND, f"{share:.2%} beyond")
        for name, (dtype, tolerance) in HALF.items():
            # Products of these channels overflow in half precision unless the network scales them.
            expected = host(1000 * golden["input"])
            with torch.autocast(report.device, dtype):
                found = network(1000 * image)
            apart = largest_difference(found, expected) / expected.abs().max().item()
            report.figure(f"golden_{name}_relative_difference", apart)
            report.expect(f"the golden network is right in {name}", apart < tolerance, f"{apart:.2g}")


def compare_official(report: Report) -> None:
    """Compare the forward pass of `official` on a whole slice with the CPU in float32."""
    config = AmirConfig.preset(report.pick(gpu="official", cpu="tiny"))
    torch.manual_seed(0)
    host = Amir(config).eval()
    network = Amir(config).eval().to(report.device)
    network.load_state_dict(host.state_dict())
    image = torch.rand(1, 1, *report.pick(gpu=WHOLE_SLICE, cpu=(48, 40)))
    with torch.no_grad():
        expected = host(image) - image
        found = {"float32": network(image.to(report.device)).cpu() - image}
        for name, (dtype, _) in HALF.items():
            with torch.autocast(report.device, dtype):
                found[name] = network(image.to(report.device)).cpu() - image
    for name, residual in found.items():
        error = relative_error(residual, expected)
        report.figure(f"official_{name}_relative_error", error)
        report.figure(f"official_{name}_largest_difference", largest_difference(residual, expected))
        tolerance = FLOAT32_TOLERANCE if name == "float32" else 4 * HALF[name][1]
        share = share_beyond(residual, expected, tolerance)
        allowed = SHARE_BEYOND if name == "float32" else HALF_SHARE_BEYOND
        report.expect(
            f"the correction of `official` in {name} is that of the CPU", share < allowed, f"{share:.2%} beyond"
        )


def compare_gradients(report: Report) -> None:
    """Compare the gradients of `official` with the CPU in float32, for every way to keep activations."""
    config = AmirConfig.preset(report.pick(gpu="official", cpu="tiny"))
    size = report.pick(gpu=(104, 88), cpu=(24, 16))
    host = BareStep("cpu", config, 1, size, "no").gradients()
    cases: list[tuple[str, Checkpointing, str]] = [
        ("no", "none", ""),
        ("no", "selective", ""),
        ("no", "full", ""),
        ("no", "none", OTHER_PATH),
        ("bf16", "none", ""),
        ("fp16", "none", ""),
        ("bf16", "none", KERNELS),
        ("bf16", "selective", KERNELS),
    ]
    for precision, checkpointing, variant in cases:
        if variant == KERNELS and not report.on_gpu:
            report.needs_gpu(f"gradients of the whole network with all kernels, {checkpointing}")
            continue
        step = BareStep(report.device, config, 1, size, precision)
        step.network.set_checkpointing(checkpointing)
        if variant == KERNELS:
            step.network.use_kernels("on")
        if variant == OTHER_PATH:
            for module in step.network.modules():
                if isinstance(module, DeviceDependent):
                    module.gpu_path = not report.on_gpu
        found = step.gradients(scale=1024.0 if precision == "fp16" else 1.0)
        name = f"gradient_{'float32' if precision == 'no' else precision}_{checkpointing}{variant}"
        error = joint_error(found, host)
        worst = max(host, key=lambda key: relative_error(found[key], host[key]) if host[key].any() else 0.0)
        report.figure(f"{name}_relative_error", error)
        report.text(f"worst parameter, {name}", f"{worst}: {relative_error(found[worst], host[worst]):.2g}")
        report.expect(f"{name} is that of the CPU", error < GRADIENT_TOLERANCE[precision], f"{error:.2g}")


def compare_depthwise(report: Report) -> None:
    """Compare every depthwise convolution of every preset, forward and backward, with float64."""
    sizes = sorted({size for preset in PRESETS for size in depthwise_sizes(preset, report.device)})
    if not report.on_gpu:
        # The CPU takes seconds for each of the large ones.
        sizes = [size for size in sizes if size[0] * size[1] * size[2] < 50_000]
    errors: dict[str, float] = {}
    for channels, height, width in sizes:
        for name, dtype in DTYPES.items():
            error = depthwise_error(report.device, (channels, height, width), dtype)
            errors[name] = max(errors.get(name, 0.0), error)
            if not error < (1e-5 if name == "float32" else 1e-2):
                report.expect(f"the depthwise convolution {channels} x {height} x {width} in {name}", False, str(error))
    report.text("depthwise convolutions (channels, height, width)", json.dumps(sizes))
    report.figure("depthwise_sizes", len(sizes))
    report.figure("depthwise_largest_relative_error", errors)
    report.expect("every depthwise size was compared", bool(sizes), f"{len(sizes)} sizes")


def depthwise_error(device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """Return the largest relative error of value, input gradient and weight gradient of one convolution."""
    channels, height, width = shape
    generator = torch.Generator(device).manual_seed(channels)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device, generator=generator).to(dtype).requires_grad_()

    x, weight = draw(2, height, width, channels), draw(channels, 9)
    direction = draw(2, height, width, channels).detach()
    found = (value := depthwise(x, weight), *torch.autograd.grad(value, (x, weight), direction))
    wide_x, wide_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    image = F.conv2d(wide_x.permute(0, 3, 1, 2), wide_weight.reshape(channels, 1, 3, 3), padding=1, groups=channels)
    expected = (image.permute(0, 2, 3, 1),)
    expected += torch.autograd.grad(image, (wide_x, wide_weight), direction.double().permute(0, 3, 1, 2))
    return max(relative_error(one, other) for one, other in zip(found, expected, strict=True))
