"""The Triton kernels against plain PyTorch: values and gradients, for all channel counts and odd sizes.

Each kernel is a function beside its definition in plain PyTorch, `plain_NAME`. It is compared twice: alone, and inside
a block of the network that uses it. float64 is the reference: a kernel must be about as close to it as plain PyTorch
in the same precision. Other processes do this, because compiling kernels takes most of the time, and because a kernel
that writes where it must not makes its process unusable.
"""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

import upfield.model.kernels
from acceptance.measuring import relative_error
from acceptance.report import Report
from upfield.common.tables import text_table
from upfield.common.tasks import end_with_parent
from upfield.model.amir import Amir, AmirConfig
from upfield.model.blocks import ROW_MULTIPLE, TransformerBlock, next_multiple
from upfield.model.kernels.selection import PROVED, has_triton

PRESETS = ("official", "report", "tiny")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A kernel's error may be this many times that of plain PyTorch in the same precision, or as large as the floor.
FACTOR, FLOORS = 4.0, {"float32": 2e-5, "bf16": 1.5e-2, "fp16": 3e-3}
Tensors = list[Tensor]


@dataclass(frozen=True, order=True)
class BlockShape:
    """What distinguishes the blocks of a network."""

    channels: int
    num_heads: int
    expansion: float
    level: int
    """Resolution: 0 is full, 1 is half, and so on."""

    @property
    def hidden(self) -> int:
        """Channels of each half of the feed-forward layer, padded."""
        return next_multiple(int(self.channels * self.expansion), ROW_MULTIPLE)

    def build(self, device: str) -> TransformerBlock:
        """Build a block with seeded weights that differ from those at the start of training."""
        torch.manual_seed(self.channels)
        block = TransformerBlock(self.channels, self.num_heads, self.expansion)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return block.to(device)


@dataclass(frozen=True)
class Comparison:
    """How far a kernel and plain PyTorch are from float64, in one precision and at one size."""

    kernel: str
    shape: BlockShape
    size: tuple[int, int, int]
    precision: str
    error: float
    plain_error: float

    @property
    def holds(self) -> bool:
        """Whether the kernel is as exact as it must be. NaN never is."""
        return self.error <= max(FACTOR * self.plain_error, FLOORS[self.precision])

    @property
    def place(self) -> str:
        """Describe what was compared."""
        return f"{self.kernel} with {self.shape.channels} channels at {'x'.join(map(str, self.size))} {self.precision}"


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


def kernel_names() -> list[str]:
    """Return the names of the kernels: the modules of `model/kernels/` except the one that selects kernels."""
    files = (file for folder in upfield.model.kernels.__path__ for file in Path(folder).glob("*.py"))
    return sorted(file.stem for file in files if file.stem not in ("__init__", "selection"))


def use_kernel(block: TransformerBlock, kernel: str | None) -> None:
    """Let a block use one kernel, or none."""
    for module in block.modules():
        if hasattr(module, "kernel"):
            module.fused = module.kernel == kernel  # pyright: ignore[reportAttributeAccessIssue]


class KernelComparisons:
    """Comparisons that run in processes of their own from when this object is made until `report`."""

    def __init__(self, report: Report) -> None:
        """Start the comparisons.

        Args:
            report: report of the check, for the device and the sizes.
        """
        self._futures: list[Future[list[Comparison]]] = []
        presets = report.pick(gpu=PRESETS, cpu=("tiny",))
        shapes = sorted({shape for preset in presets for shape in block_shapes(preset)})
        sizes = report.pick(gpu=((2, 31, 17), (1, 9, 10), (1, 56, 50)), cpu=((1, 5, 7),))
        shapes = report.pick(gpu=shapes, cpu=shapes[:1])
        self._pool = ProcessPoolExecutor(report.pick(gpu=8, cpu=1), get_context("spawn"), initializer=end_with_parent)
        if has_triton():
            jobs = [
                (work, kernel, shape)
                for shape in shapes
                for work, kernels in ((compare_function, kernel_names()), (compare_block, sorted(PROVED)))
                for kernel in kernels
            ]
            self._futures = [self._pool.submit(*job, report.device, sizes) for job in jobs]

    def report(self, report: Report) -> None:
        """Wait for the comparisons and report them."""
        if not has_triton():
            report.expect("triton is installed", not report.on_gpu)
            report.needs_gpu("the Triton kernels, because triton is not installed here")
            return
        comparisons: list[Comparison] = []
        for future in self._futures:
            try:
                comparisons += future.result()
            except Exception as error:
                report.fail("a comparison of a kernel", error)
        self._pool.shutdown()
        worst: dict[str, dict[str, float]] = {}
        for each in comparisons:
            if not each.holds:
                report.expect(each.place, False, f"error {each.error:.2g}, plain PyTorch {each.plain_error:.2g}")
            errors = worst.setdefault(each.kernel, {})
            errors[each.precision] = max(errors.get(each.precision, 0.0), each.error)
        for kernel, errors in worst.items():
            report.figure(f"{kernel}_largest_error", errors)
        expected = {*kernel_names(), *(f"{kernel} in a block" for kernel in PROVED)}
        missing = expected - worst.keys()
        report.expect("every kernel was compared", not missing, ", ".join(sorted(missing)))
        rows = [[c.place, f"{c.error:.2e}", f"{c.plain_error:.2e}"] for c in comparisons]
        report.text("kernels against float64", text_table(["kernel", "error", "plain PyTorch"], rows, numeric=True))
        if not report.on_gpu:
            report.needs_gpu("the Triton kernels at all channel counts; on a CPU, Triton's interpreter runs one")


def compare_function(
    kernel: str, shape: BlockShape, device: str, sizes: list[tuple[int, int, int]]
) -> list[Comparison]:
    """Compare a kernel's function with its definition, with the sizes of a block."""
    module, name = import_module(f"upfield.model.kernels.{kernel}"), FUNCTIONS.get(kernel, kernel)
    fused, plain = getattr(module, name), getattr(module, f"plain_{name}")
    comparisons: list[Comparison] = []
    for size in sizes:
        for precision, dtype in DTYPES.items():
            images, parameters, constants = INPUTS[kernel](shape, size)
            inputs = [image.to(device, dtype).requires_grad_() for image in images]
            inputs += [parameter.to(device).requires_grad_() for parameter in parameters]
            wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
            exact = values_and_gradients(plain, wide, constants)
            errors = [worst_error(values_and_gradients(form, inputs, constants), exact) for form in (fused, plain)]
            comparisons.append(Comparison(kernel, shape, size, precision, *errors))
    return comparisons


Drawn = tuple[Tensors, Tensors, tuple[float, ...]]


def attention_inputs(shape: BlockShape, size: tuple[int, int, int]) -> Drawn:
    """Draw queries, keys and values side by side, and their filters."""
    image = torch.randn(*size, 3 * next_multiple(shape.channels, ROW_MULTIPLE))
    return [image], [torch.randn(3 * shape.channels, 9) / 3], (shape.num_heads,)


def gate_inputs(shape: BlockShape, size: tuple[int, int, int]) -> Drawn:
    """Draw both halves of a feed-forward layer side by side, and their filters."""
    return [torch.randn(*size, 2 * shape.hidden)], [torch.randn(2 * shape.hidden, 9) / 3], ()


def filter_inputs(shape: BlockShape, size: tuple[int, int, int]) -> Drawn:
    """Draw an image and a filter for each channel."""
    return [torch.randn(*size, shape.channels)], [torch.randn(shape.channels, 9) / 3], ()


def norm_inputs(shape: BlockShape, size: tuple[int, int, int]) -> Drawn:
    """Draw an image and a residual branch that are not centred, and the scale and shift of each channel."""
    channels = shape.channels
    images = [torch.randn(*size, channels) + 0.5 for _ in range(2)]
    return images, [1 + 0.1 * torch.randn(channels), torch.randn(channels)], (1e-5,)


# Name of a kernel -> name of its function, if it is another.
FUNCTIONS = {"layer_norm": "residual_norm"}
# Name of a kernel -> function that draws its images, its parameters and its constants on the CPU in float32.
INPUTS: dict[str, Callable[[BlockShape, tuple[int, int, int]], Drawn]] = {
    "channel_attention": attention_inputs,
    "depthwise": filter_inputs,
    "gated_depthwise": gate_inputs,
    "layer_norm": norm_inputs,
}


def compare_block(kernel: str, shape: BlockShape, device: str, sizes: list[tuple[int, int, int]]) -> list[Comparison]:
    """Compare a block with and without a kernel."""
    block = shape.build(device)
    return [
        Comparison(f"{kernel} in a block", shape, size, precision, *block_errors(block, kernel, shape, size, dtype))
        for size in sizes[:1]
        for precision, dtype in DTYPES.items()
    ]


def block_errors(
    block: TransformerBlock, kernel: str, shape: BlockShape, size: tuple[int, int, int], dtype: torch.dtype
) -> tuple[float, float]:
    """Return the largest relative error of a block's value and gradients with a kernel, and without.

    Args:
        block: block with float32 parameters.
        kernel: name of the kernel.
        shape: kind of block.
        size: batch, height and width of its input.
        dtype: dtype of the input and of autocast.
    """
    device = next(block.parameters()).device.type
    generator = torch.Generator().manual_seed(sum(size))
    x = torch.randn(*size, shape.channels, generator=generator).to(device, dtype)
    use_kernel(block, None)
    exact = block_results(copy.deepcopy(block).double(), x.double(), None)
    plain_error = worst_error(block_results(block, x, dtype), exact)
    use_kernel(block, kernel)
    return worst_error(block_results(block, x, dtype), exact), plain_error


def block_results(block: TransformerBlock, x: Tensor, dtype: torch.dtype | None) -> Tensors:
    """Return the output of a block, and the gradients of its input and parameters.

    Args:
        block: block, which maps `(B, H, W, C)` to the same shape.
        x: `(B, H, W, C)`.
        dtype: dtype of autocast; None or float32 turns it off.
    """

    def forward(x: Tensor, *_: Tensor) -> Tensor:
        half = dtype not in (None, torch.float32)
        with torch.autocast(x.device.type, dtype, enabled=half):
            return block(x)

    return values_and_gradients(forward, [x.detach().requires_grad_(), *block.parameters()])


def values_and_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Tensors, constants: tuple[float, ...] = ()
) -> Tensors:
    """Return the outputs of a function, and the gradients of its inputs in a seeded direction."""
    outputs = function(*inputs, *constants)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, directions)]


def worst_error(found: Tensors, exact: Tensors) -> float:
    """Return the largest relative error of any of the tensors, NaN if one is not finite."""
    errors = [relative_error(one, other) for one, other in zip(found, exact, strict=True)]
    return float("nan") if any(error != error for error in errors) else max(errors)
