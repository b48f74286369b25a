"""The Triton kernels against plain PyTorch: values and gradients, for all channel counts of all presets."""

import copy
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acceptance.measuring import relative_error
from acceptance.report import Report
from upfield.model.amir import Amir, AmirConfig
from upfield.model.blocks import TransformerBlock
from upfield.model.kernels.selection import PROVED

PRESETS = ("official", "report", "tiny")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A kernel may be this many times less exact than plain PyTorch in the same precision, or as exact as the second number.
FACTOR, FLOORS = 3.0, {"float32": 2e-5, "bf16": 1e-2, "fp16": 2e-3}


@dataclass(frozen=True)
class BlockShape:
    """What distinguishes the blocks of a network."""

    channels: int
    num_heads: int
    expansion: float
    level: int
    """Resolution: 0 is full, 1 is half, and so on."""

    def build(self, device: str) -> TransformerBlock:
        """Build a block with seeded weights that differ from those at the start of training."""
        torch.manual_seed(self.channels)
        block = TransformerBlock(self.channels, self.num_heads, self.expansion)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return block.to(device)


def block_shapes(preset: str) -> dict[BlockShape, int]:
    """Return the kinds of blocks of a preset, and how many blocks of each kind there are."""
    config = AmirConfig.preset(preset)
    with torch.device("meta"):
        network = Amir(config)
    shapes: dict[BlockShape, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, TransformerBlock):
            level = 3 if "latent" in name else int(name.split("level")[1][0]) - 1 if "level" in name else 0
            channels = module.norm1.body.normalized_shape[0]
            shape = BlockShape(channels, module.attn.num_heads, config.ffn_expansion, level)
            shapes[shape] = shapes.get(shape, 0) + 1
    return shapes


def modules_with(kernel: str, block: TransformerBlock) -> Iterator[nn.Module]:
    """Yield the modules of a block that can use a kernel."""
    return (module for module in block.modules() if getattr(module, "kernel", None) == kernel)


def prove_kernels(report: Report) -> None:
    """Compare every kernel with plain PyTorch at all channel counts and at odd sizes."""
    report.figure("kernels", sorted(PROVED))
    if importlib.util.find_spec("triton") is None:
        report.expect("triton is installed", not report.on_gpu)
        report.needs_gpu("the Triton kernels, because triton is not installed")
        return
    presets = report.pick(gpu=PRESETS, cpu=("tiny",))
    shapes = sorted({shape for preset in presets for shape in block_shapes(preset)}, key=str)
    if not report.on_gpu:
        shapes = shapes[:1]
        report.needs_gpu("the Triton kernels at all channel counts; on a CPU, Triton's interpreter runs one")
    for kernel in PROVED:
        errors = prove_kernel(report, kernel, shapes)
        report.figure(f"{kernel}_largest_error", {name: float(f"{error:.3g}") for name, error in errors.items()})


def prove_kernel(report: Report, kernel: str, shapes: list[BlockShape]) -> dict[str, float]:
    """Compare one kernel, and return its largest relative error in each precision."""
    errors: dict[str, float] = {}
    sizes = report.pick(gpu=((2, 31, 17), (1, 9, 10), (1, 56, 50)), cpu=((1, 5, 7),))
    for shape in shapes:
        block = shape.build(report.device)
        # Both norms of a block are the same kind of module.
        for module in list(modules_with(kernel, block))[:1]:
            for size in sizes:
                for name, dtype in DTYPES.items():
                    error, least = kernel_error(module, shape.channels, size, report.device, dtype)
                    errors[name] = max(errors.get(name, 0.0), error)
                    if not error <= max(FACTOR * least, FLOORS[name]):
                        place = f"{kernel} at {size[0]} x {size[1]} x {size[2]} x {shape.channels} in {name}"
                        report.expect(f"{place} is right", False, f"error {error:.2g}, plain PyTorch {least:.2g}")
    report.expect(f"{kernel} was compared", bool(errors), f"{len(shapes)} channel counts, {len(sizes)} sizes")
    return errors


def kernel_error(
    module: nn.Module, channels: int, size: tuple[int, int, int], device: str, dtype: torch.dtype
) -> tuple[float, float]:
    """Return the largest relative error of value and gradients with the kernel, and that of plain PyTorch.

    Args:
        module: module that can use the kernel, with float32 parameters.
        channels: channels of its input.
        size: batch, height and width of its input.
        device: `cuda` or `cpu`.
        dtype: dtype of the input and of autocast.
    """
    generator = torch.Generator().manual_seed(sum(size))
    x, direction = (torch.randn(*size, channels, generator=generator).to(device, dtype) for _ in range(2))
    module.fused = False  # pyright: ignore[reportAttributeAccessIssue]
    exact = results(copy.deepcopy(module).double(), x.double(), direction.double(), None)
    plain = results(module, x, direction, dtype)
    module.fused = True  # pyright: ignore[reportAttributeAccessIssue]
    fused = results(module, x, direction, dtype)
    return tuple(  # pyright: ignore[reportReturnType]
        max(relative_error(one, other) for one, other in zip(found, exact, strict=True)) for found in (fused, plain)
    )


def results(module: nn.Module, x: Tensor, direction: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Return the output of a module, and the gradients of its input and parameters.

    Args:
        module: module that maps `(B, H, W, C)` to the same shape.
        x: `(B, H, W, C)`.
        direction: `(B, H, W, C)`, gradient of the output.
        dtype: dtype of autocast; None or float32 turns it off.
    """
    x = x.detach().requires_grad_()
    half = dtype not in (None, torch.float32)
    with torch.autocast(x.device.type, dtype, enabled=half):
        y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], direction.to(y.dtype))]
