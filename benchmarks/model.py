"""Measure AMIR's forward pass and training step: slices per second, memory, and share of the speed of matrix products.

Each row is one way to run the same network. Each repeat runs every row once, so that a noisy machine disturbs all of
them alike, and the best of `--repeats` counts. A training step is the forward pass, loss and backward pass, without the
optimizer. `share` is the number of floating-point operations per second, divided by that of plain matrix products on
this machine in the same precision (TF32 for float32 on a GPU). A multiply-add counts as two operations, and a training
step as three forward passes.

`--against FILE.py:Class` adds another implementation with the same parameter names. It is built with the arguments of
`--arguments` (JSON), gets the weights of our network, and runs unchanged in float32 and under autocast. `ratio` is the
speed relative to the first row of the same precision, and `to first` relative to the first row of all.

Peak memory is measured in a separate process for each row: on a CPU all memory of the process, on a GPU what torch
allocates. "memory kept" is `upfield.common.allocator.keep_freed_memory`, which training on a CPU turns on. On a GPU,
the table ends with the number of times that the host waits for the device in one forward pass. It should be none.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from acceptance.measuring import synchronise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from upfield.common.allocator import keep_freed_memory
from upfield.common.cores import processor_name
from upfield.model.amir import Amir, AmirConfig, Checkpointing
from upfield.model.configuration import LossConfig
from upfield.model.losses import restoration_loss

FORWARD, STEP = "forward", "training step"


@dataclass(frozen=True)
class Row:
    """One way to run the network."""

    name: str
    theirs: bool = False
    channels_last: bool = False
    bf16: bool = False
    compiled: bool = False
    checkpointing: Checkpointing = "none"
    kept: bool = False
    """Whether the process keeps freed memory. On a GPU this makes no difference, so such rows are not listed twice."""


ROWS = (
    Row("published, float32", theirs=True),
    Row("published, bf16 autocast", theirs=True, bf16=True),
    Row("ours, float32"),
    Row("ours, float32, channels-last weights", channels_last=True),
    Row("ours, float32, memory kept", kept=True),
    Row("ours, float32, compiled, memory kept", compiled=True, kept=True),
    Row("ours, bf16", bf16=True),
    Row("ours, bf16, memory kept", bf16=True, kept=True),
    Row("ours, bf16, compiled, memory kept", bf16=True, compiled=True, kept=True),
    Row("ours, bf16, selective checkpointing", bf16=True, checkpointing="selective"),
    Row("ours, bf16, full checkpointing", bf16=True, checkpointing="full"),
)


def rows_of(arguments: argparse.Namespace, use: str) -> list[Row]:
    """Return the rows that apply to this device."""
    rows = [row for row in ROWS if (arguments.against or not row.theirs) and (arguments.compile or not row.compiled)]
    if use == FORWARD:
        rows = [row for row in rows if row.checkpointing == "none"]
    if arguments.on_gpu:
        rows = [replace(row, name=row.name.removesuffix(", memory kept")) for row in rows]
    return list({row.name: row for row in rows}.values())


def main() -> None:
    """Print a table for each slice size, of the forward pass and of the training step."""
    arguments = parse_arguments()
    if arguments.only is not None:
        print(json.dumps(measure_memory(arguments)))
        return
    rates = {bf16: product_rate(arguments.device, bf16) for bf16 in (False, True)}
    print(
        f"{machine(arguments.device)}, torch {torch.__version__}, preset {arguments.preset}, batch {arguments.batch}, "
        f"best of {arguments.repeats}\nmatrix products: {rates[False]:.2f} TFLOP/s float32, {rates[True]:.2f} bf16"
    )
    for size in arguments.sizes:
        images = torch.rand(arguments.batch, 1, *size, device=arguments.device)
        operations = count_operations(arguments, images)
        for use in (FORWARD, STEP):
            title = f"{use}, {size[0]} x {size[1]}"
            print(f"\n{title:<40} slices/s   ratio   to first   share   memory (GB)")
            rows = rows_of(arguments, use)
            times = time_rows(arguments, rows, use, images)
            if arguments.on_gpu:
                torch.cuda.empty_cache()  # The processes that measure memory need the GPU's memory.
            for row in (row for row in rows if times[row] == float("inf")):
                print(f"  {row.name:<38} out of memory")
            for row in (row for row in rows if times[row] < float("inf")):
                share = operations * (3 if use == STEP else 1) / times[row] / rates[row.bf16] / 1e12
                base = next(other for other in rows if other.bf16 == row.bf16)
                print(
                    f"  {row.name:<38} {arguments.batch / times[row]:>8.2f} {times[base] / times[row]:>7.2f} "
                    f"{times[rows[0]] / times[row]:>10.2f} {share:>7.2f} {memory(arguments, row, use, size):>13.2f}",
                    flush=True,
                )
    if arguments.on_gpu:
        for use in (FORWARD, STEP):
            waits = count_waits(arguments, Row("ours, bf16", bf16=True), use)
            print(f"\nwaits of the host for the device within a forward pass ({use}): {waits or 'none'}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--preset", default="official")
    parser.add_argument("--sizes", nargs="+", type=read_size, default=[(128, 128), (224, 200)])
    parser.add_argument("--batch", type=int, help="batch size; default: 32 on a GPU, 2 on a CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default=device)
    compiling = argparse.BooleanOptionalAction
    parser.add_argument("--compile", action=compiling, help="add compiled rows: minutes on a CPU, default on a GPU")
    parser.add_argument("--against", help="another implementation, as FILE.py:Class")
    parser.add_argument("--arguments", type=json.loads, default={}, help="arguments of that class, as JSON")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.on_gpu = torch.device(arguments.device).type == "cuda"
    if arguments.batch is None:
        arguments.batch = 32 if arguments.on_gpu else 2
    if arguments.compile is None:
        arguments.compile = arguments.on_gpu
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return arguments


def read_size(text: str) -> tuple[int, int]:
    """Parse a size such as `224x200`."""
    height, width = text.split("x")
    return int(height), int(width)


def build(arguments: argparse.Namespace, row: Row) -> nn.Module:
    """Build the network of a row; all rows have the same weights."""
    torch.manual_seed(0)
    ours = Amir(AmirConfig.preset(arguments.preset))
    network: nn.Module = ours
    if row.theirs:
        file, _, name = arguments.against.rpartition(":")
        spec = importlib.util.spec_from_file_location("against", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(file).parent))
        spec.loader.exec_module(module)
        network = getattr(module, name)(**arguments.arguments)
        network.load_state_dict(ours.state_dict(), strict=True)
    ours.set_checkpointing(row.checkpointing)
    layout: Any = {"memory_format": torch.channels_last} if row.channels_last else {}
    if row.compiled:
        ours.compile_blocks()
    return network.to(arguments.device, **layout)


def autocast(device: str, row: Row) -> AbstractContextManager[Any]:
    """Return the autocast context for the precision of a row."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=row.bf16)


def runner(network: nn.Module, row: Row, use: str, images: Tensor) -> Callable[[], None]:
    """Return a function that runs the pass or step once and waits until the device has finished."""
    network.train(use == STEP)
    if row.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    target, config = torch.rand_like(images), LossConfig()

    def forward() -> None:
        with torch.no_grad(), autocast(images.device.type, row):
            network(images)
        synchronise(images.device.type)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with autocast(images.device.type, row):
            restored, load_loss = network(images)[:2]
        restoration_loss(restored, target, load_loss, config)[0].backward()
        synchronise(images.device.type)

    return step if use == STEP else forward


def time_rows(arguments: argparse.Namespace, rows: list[Row], use: str, images: Tensor) -> dict[Row, float]:
    """Measure the best time in seconds of each row, infinite if memory runs out; each repeat runs every row once."""
    runners = {row: runner(build(arguments, row), row, use, images) for row in rows}
    best = dict.fromkeys(rows, float("inf"))
    for row, run in list(runners.items()):
        try:
            run()
        except torch.OutOfMemoryError:
            del runners[row]
            torch.cuda.empty_cache()
    for _ in range(arguments.repeats):
        for row, run in runners.items():
            keep_freed_memory(row.kept)
            start = time.perf_counter()
            run()
            best[row] = min(best[row], time.perf_counter() - start)
    return best


def count_operations(arguments: argparse.Namespace, images: Tensor) -> int:
    """Count the floating-point operations of a forward pass."""
    network = build(arguments, Row("ours, float32")).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


def product_rate(device: str, bf16: bool) -> float:
    """Measure the speed of a plain matrix product, in TFLOP/s."""
    size, dtype = (8192 if torch.device(device).type == "cuda" else 2048), torch.bfloat16 if bf16 else torch.float32
    first, second = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        synchronise(first.device.type)
        start = time.perf_counter()
        first @ second
        synchronise(first.device.type)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


def memory(arguments: argparse.Namespace, row: Row, use: str, size: tuple[int, int]) -> float:
    """Measure the peak memory of a row in GB in a separate process; on a GPU only what torch allocates counts."""
    job = {"row": asdict(row), "use": use, "size": size}
    command = [sys.executable, __file__, *sys.argv[1:], "--only", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  memory of the next row: {done.stderr.strip().splitlines()[-1]}")
        return float("nan")
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(arguments: argparse.Namespace) -> float:
    """Run a row's pass or step twice and return the peak memory in GB."""
    job = json.loads(arguments.only)
    row, images = Row(**job["row"]), torch.rand(arguments.batch, 1, *job["size"], device=arguments.device)
    run = runner(build(arguments, row), row, job["use"], images)
    if row.kept:
        keep_freed_memory()
    for _ in range(2):
        run()
    if images.is_cuda:
        return torch.cuda.max_memory_allocated() / 1e9
    # ru_maxrss would start at the peak of the parent process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def count_waits(arguments: argparse.Namespace, row: Row, use: str) -> dict[str, int]:
    """Count, by name, the runtime calls of one forward pass that make the host wait for the device."""
    network, images = build(arguments, row), torch.rand(arguments.batch, 1, *arguments.sizes[0], device="cuda")
    network.train(use == STEP)
    calls: dict[str, int] = {}
    with torch.set_grad_enabled(use == STEP), autocast("cuda", row):
        network(images)
        synchronise(images.device.type)
        with torch.profiler.profile() as profiler:
            network(images)
        # The profiler itself makes the host wait once when it ends; that call is not counted.
        for event in profiler.events():
            if event.name in ("cudaStreamSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense"):
                calls[event.name] = calls.get(event.name, 0) + 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            network(images)
        except RuntimeError as error:
            calls[str(error)] = 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return calls


def machine(device: str) -> str:
    """Return the name of the GPU, or of the processor with the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
