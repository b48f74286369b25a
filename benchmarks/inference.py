"""Measure AMIR's inference: seconds per slice in several ways, memory for a volume, and time outside the network.

All ways run the same network. Each repeat runs every way once, so that a noisy machine disturbs all of them alike. The
median of `--repeats` counts, and `ratio` is the speed relative to the first row. With `--apart`, each way runs in its
own process, as in real use: in one process, the threads and the memory of the other ways slow ONNX Runtime down. On a
busy machine, one thread and `--clock cpu` still show which way is faster.

Quality is the PSNR of the output relative to PyTorch's in float32. With `--run` and `--shards`, the network is trained
and the slices are real; the table then shows how much PSNR to the target slices each way loses. `--against
FILE.py:Class` adds the published implementation, as in benchmarks/model.py.

`upfield enhance` restores a volume of 179 x 221 x 200 voxels in its own process. The network restores only the first
four slices, and the others are copied: they would need no more memory, and the rest of the time is the time outside the
network. `--whole` restores all slices.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from model import Row, build, read_size
from upfield.common.allocator import keep_freed_memory
from upfield.common.command import to_tree
from upfield.common.cores import num_cores, processor_name
from upfield.export.modelfile.card import write_card
from upfield.export.modelfile.graph import build_graph, write_model
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.modelfile.parity import draw, psnr_slice_db
from upfield.export.modelfile.parity_slices import SlicePairs, read_parity_slices
from upfield.export.modelfile.torch_restorer import TorchRestorer
from upfield.imaging.normalisation import NORMALISATION
from upfield.model.amir import Amir, pad_to_multiple
from upfield.model.weights import load_model
from upfield.sharding.configuration import GeometryConfig

LEVELS = {"no graph optimisation": "ORT_DISABLE_ALL", "up to fusions, no layout": "ORT_ENABLE_EXTENDED"}
APART = (
    "PyTorch, ours, float32",
    "PyTorch, ours, float32, memory kept",
    "PyTorch, ours, bf16 autocast, memory kept",
    "PyTorch, as --engine torch runs it",
    "ONNX Runtime, as upfield runs it",
)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
VOLUME, NUM_RESTORED = (179, 221, 200), 4
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def main() -> None:
    """Print the tables."""
    arguments = parse_arguments()
    if arguments.only:
        print(json.dumps(enhance_volume(Path(arguments.only), arguments.whole)))
        return
    torch.set_num_threads(arguments.threads)
    if arguments.apart:
        print_apart(arguments)
        return
    network, slices = choose_network(arguments)
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(network, Path(folder))
        if arguments.way:
            print(seconds_of(ways(arguments, network, files)[arguments.way], slices, arguments))
            return
        if not arguments.few:
            files |= quantised(files["fp32"], slices, Path(folder))
        size = " x ".join(map(str, slices.low.shape[2:]))
        print(
            f"{processor_name()}, {arguments.threads} threads, torch {torch.__version__}, "
            f"ONNX Runtime {ort.__version__}, {arguments.run or 'preset ' + arguments.preset}, slices of {size}, "
            f"{arguments.clock} time, median of {arguments.repeats}"
        )
        per_slice = print_ways(ways(arguments, network, files), slices, arguments)
        if not arguments.few:
            print_batches(OnnxRestorer(files["fp32"], "cpu", arguments.threads), slices, arguments)
        print_volume(files["fp32"], per_slice, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="official")
    parser.add_argument("--run", type=Path, help="trained run, instead of a preset with random weights")
    parser.add_argument("--shards", type=Path, help="shard set of the run, for real slices with targets")
    parser.add_argument("--size", type=read_size, default=(221, 200))
    parser.add_argument("--batch", type=int, default=8, help="batch size to compare with single slices")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of all threads, even spinning")
    parser.add_argument("--apart", action="store_true", help="measure each way in its own process")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--few", action="store_true", help="only PyTorch and the session of upfield, no batches")
    parser.add_argument("--against", help="published implementation, as FILE.py:Class")
    parser.add_argument("--arguments", type=json.loads, default={}, help="arguments of that class, as JSON")
    parser.add_argument("--whole", action="store_true", help="restore all slices of the volume")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.device = "cpu"  # `build` of benchmarks/model.py reads it.
    return arguments


def choose_network(arguments: argparse.Namespace) -> tuple[Amir, SlicePairs]:
    """Return the network and slices to measure with: real slices with their targets, or one random slice."""
    if arguments.run:
        network = load_model(arguments.run / "best" / "model.safetensors")
        if arguments.shards:
            return network, read_parity_slices(arguments.shards, network.config.in_channels // 2, is_recorded=False)
    else:
        made = build(arguments, Row("ours"))
        assert isinstance(made, Amir)
        network = made.eval()
    image = np.tile(draw(*arguments.size), (1, network.config.in_channels, 1, 1))
    with torch.inference_mode():
        high = network(torch.from_numpy(image)).numpy()
    return network, SlicePairs(image, np.clip(high, 0, 1))


def write_files(network: Amir, folder: Path) -> dict[str, Path]:
    """Write the model in float32 and in half precision."""
    card: dict[str, Any] = dict.fromkeys(("config", "data_sha256", "step"), "")
    card |= {"context": network.config.in_channels // 2, "normalisation": NORMALISATION}
    card["geometry"] = to_tree(GeometryConfig())
    card["model"] = network.config.to_tree()
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16")}
    for name, path in files.items():
        model = build_graph(network, half=name == "fp16")
        write_card(model, card | {"precision": name})
        with write_model(model, path):
            pass
    return files


def quantised(path: Path, slices: SlicePairs, folder: Path) -> dict[str, Path]:
    """Write the model twice: with its matrix products in int8, and with its convolutions in int8."""
    import logging

    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    logging.disable(logging.WARNING)  # It advises shape inference, but the graph has no fixed shapes.
    files = {name: folder / f"{name}.onnx" for name in ("int8 products", "int8 convolutions")}
    quantize_dynamic(path, files["int8 products"], op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)

    class Reader:
        """Yield each slice once, for calibration."""

        def __init__(self) -> None:
            self.left = [slices.low[number : number + 1] for number in range(min(len(slices.low), 2))]

        def get_next(self) -> dict[str, Any] | None:
            return {"low": self.left.pop()} if self.left else None

    quantize_static(
        path,
        files["int8 convolutions"],
        Reader(),  # pyright: ignore[reportArgumentType]
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return files


def ways(arguments: argparse.Namespace, network: Amir, files: dict[str, Path]) -> dict[str, Run]:
    """Return the ways to restore one slice, by name. The others are compared with the first."""
    runs: dict[str, Run] = {}
    if arguments.against:
        theirs = build(arguments, Row("published", theirs=True)).eval()
        runs["PyTorch, published, float32"] = torch_run(theirs, padded=True)
    runs["PyTorch, ours, float32"] = torch_run(network)
    runs["PyTorch, ours, float32, memory kept"] = torch_run(network, kept=True)
    runs["PyTorch, ours, bf16 autocast, memory kept"] = torch_run(network, kept=True, bf16=True)
    engine = TorchRestorer(files["fp32"], "cpu", arguments.threads)
    runs["PyTorch, as --engine torch runs it"] = engine_run(engine)
    restorer = OnnxRestorer(files["fp32"], "cpu", arguments.threads)
    runs["ONNX Runtime, as upfield runs it"] = restorer.run
    if arguments.few:
        return runs
    for name, level in LEVELS.items():
        runs[f"ONNX Runtime, {name}"] = session_run(files["fp32"], arguments.threads, level=level)
    runs["ONNX Runtime, no memory arena"] = session_run(files["fp32"], arguments.threads, arena=False)
    spinning = "session.intra_op.allow_spinning"
    runs["ONNX Runtime, threads that sleep"] = session_run(files["fp32"], arguments.threads, **{spinning: "0"})
    denormal = "session.set_denormal_as_zero"
    runs["ONNX Runtime, denormals as zero"] = session_run(files["fp32"], arguments.threads, **{denormal: "1"})
    for name in ("fp16", "int8 products", "int8 convolutions"):
        runs[f"ONNX Runtime, {name}"] = session_run(files[name], arguments.threads)
    return runs


def torch_run(network: torch.nn.Module, padded: bool = False, kept: bool = False, bf16: bool = False) -> Run:
    """Return a function that restores with PyTorch; `padded` is for networks that do not pad their input themselves."""

    def run(low: NDArray[np.float32]) -> NDArray[np.float32]:
        keep_freed_memory(kept)
        image = torch.from_numpy(low)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            high = network(pad_to_multiple(image) if padded else image)
        return high[..., : low.shape[2], : low.shape[3]].float().numpy()

    return run


def engine_run(engine: TorchRestorer) -> Run:
    """Return a function that restores in the PyTorch engine. It keeps freed memory, as `upfield enhance` does."""

    def run(low: NDArray[np.float32]) -> NDArray[np.float32]:
        keep_freed_memory()
        return engine.run(low)

    return run


def session_run(path: Path, threads: int, level: str = "ORT_ENABLE_ALL", arena: bool = True, **entries: str) -> Run:
    """Return a function that restores in an ONNX Runtime session with these options."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    # upfield sets this option, so each row differs from upfield's session in one option only.
    for key, value in ({"session.force_spinning_stop": "1"} | entries).items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda low: np.asarray(session.run(["high"], {"low": low})[0])


def print_ways(runs: dict[str, Run], slices: SlicePairs, arguments: argparse.Namespace) -> float:
    """Print a row for each way, and return the seconds per slice of the way that upfield uses."""
    keep_freed_memory(False)
    low = slices.low[:1]
    quality = {name: psnr_of(run, slices) for name, run in runs.items()}  # This is also the slow first run.
    times = interleaved(runs, low, arguments, arguments.repeats)
    first = next(iter(runs))
    base = quality["PyTorch, ours, float32"]
    lost = "lost (dB)" if arguments.shards else "PSNR to PyTorch (dB)"
    print(f"\n{'one slice on the CPU':<48} s/slice   ratio   {lost}")
    for name, seconds in times.items():
        shown = f"{base - quality[name]:z.3f}" if arguments.shards else f"{quality[name]:.1f}"
        print(f"  {name:<46} {seconds:>7.3f} {times[first] / seconds:>7.2f} {shown:>11}", flush=True)
    return times["ONNX Runtime, as upfield runs it"]


def print_apart(arguments: argparse.Namespace) -> None:
    """Print a row for each way. Each measurement runs in its own process, and the ways take turns."""
    names = [*(["PyTorch, published, float32"] if arguments.against else []), *APART]
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            command = [sys.executable, *(word for word in sys.argv if word != "--apart"), "--few", "--way", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times[name].append(float(done.stdout.split()[-1]))
    print(
        f"{processor_name()}, {arguments.threads} threads, torch {torch.__version__}, ONNX Runtime {ort.__version__}, "
        f"{arguments.run or 'preset ' + arguments.preset}, {arguments.clock} time, median of {arguments.repeats}, each "
        f"in a process of its own\n\n{'one slice on the CPU':<48} s/slice   ratio"
    )
    first = statistics.median(times[names[0]])
    for name, seconds in times.items():
        print(f"  {name:<46} {statistics.median(seconds):>7.3f} {first / statistics.median(seconds):>7.2f}")


def seconds_of(run: Run, slices: SlicePairs, arguments: argparse.Namespace) -> float:
    """Return the median time in seconds of one way alone; its slow first run does not count."""
    run(slices.low[:1])
    return statistics.median(interleaved({"": run}, slices.low[:1], arguments)[""] for _ in range(3))


def psnr_of(run: Run, slices: SlicePairs) -> float:
    """Compute the mean PSNR of restored slices to their targets, in dB."""
    restored = np.concatenate([run(slices.low[number : number + 1]) for number in range(len(slices.low))])
    return float(psnr_slice_db(restored, slices.high).mean())


def interleaved(
    runs: dict[str, Run], low: NDArray[np.float32], arguments: argparse.Namespace, repeats: int = 1
) -> dict[str, float]:
    """Measure the median time in seconds of each way for `low` `(N, C, H, W)`; each repeat runs every way once."""
    clock = CLOCKS[arguments.clock]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run(low)
            times[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def print_batches(restorer: OnnxRestorer, slices: SlicePairs, arguments: argparse.Namespace) -> None:
    """Print the time per slice for single slices, for a batch as upfield splits it, and for a whole batch."""
    count = arguments.batch
    batch = np.ascontiguousarray(np.broadcast_to(slices.low[:1], (count, *slices.low.shape[1:])))
    alone, together = f"{count} batches of 1", f"1 batch of {count}"
    whole = f"1 batch of {count}, given to ONNX Runtime whole"
    runs: dict[str, Run] = {
        alone: lambda low: np.concatenate([restorer.run(one) for one in np.split(low, len(low))]),
        together: restorer.run,
        whole: session_run(restorer.path, arguments.threads),
    }
    times = interleaved(runs, batch, arguments, max(arguments.repeats // 2, 1))
    print(f"\n{'batches on the CPU':<48} s/slice   of 1")
    for name, seconds in times.items():
        print(f"  {name:<46} {seconds / count:>7.3f} {seconds / times[alone]:>6.2f}", flush=True)


def print_volume(path: Path, per_slice: float, arguments: argparse.Namespace) -> None:
    """Print the memory that a volume takes, and the time outside the network."""
    command = [sys.executable, __file__, "--only", str(path), *(["--whole"] if arguments.whole else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"upfield enhance failed on the test volume: {done.stderr.strip().splitlines()[-1]}")
    report = json.loads(done.stdout.splitlines()[-1])
    network_s = report["network_s"] if arguments.whole else per_slice * VOLUME[0]
    share = report["around_s"] / (report["around_s"] + network_s)
    print(
        f"\nupfield enhance, a volume of {' x '.join(map(str, VOLUME))} voxels: {report['memory_gb']:.2f} GB at most\n"
        f"  loading the model {report['load_s']:.2f} s, network {network_s:.1f} s"
        f"{'' if arguments.whole else ' (that many slices of the above)'}, around it {report['around_s']:.2f} s "
        f"({report['around_cpu_s']:.2f} s of processor time), {100 * share:.1f}% of both"
    )


def enhance_volume(model: Path, whole: bool) -> dict[str, float]:
    """Run `upfield enhance` on a random volume and return its peak memory in GB and its times in seconds."""
    from upfield.export import enhance

    spent = {"load": 0.0, "network": 0.0, "cpu": 0.0, "slices": 0}
    load, restore = OnnxRestorer.__init__, OnnxRestorer.restore

    def timed_load(self: OnnxRestorer, *given: Any, **named: Any) -> None:
        start, start_cpu = time.perf_counter(), time.process_time()
        load(self, *given, **named)
        spent["load"] += time.perf_counter() - start
        spent["cpu"] += time.process_time() - start_cpu

    def timed_restore(self: OnnxRestorer, low: NDArray[np.float32]) -> NDArray[np.float32]:
        if not whole and spent["slices"] >= NUM_RESTORED:
            return low[:, self.context : self.context + 1].copy()
        start, start_cpu = time.perf_counter(), time.process_time()
        high = restore(self, low)
        spent["network"] += time.perf_counter() - start
        spent["cpu"] += time.process_time() - start_cpu
        spent["slices"] += len(low)
        return high

    OnnxRestorer.__init__, OnnxRestorer.restore = timed_load, timed_restore
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        voxels = np.random.default_rng(0).random((112, 138, 40), np.float32)
        affine = np.diag([*(np.array(VOLUME) / voxels.shape), 1.0])
        nib.save(nib.Nifti1Image(voxels, affine), scan)  # pyright: ignore[reportPrivateImportUsage]
        start, start_cpu = time.perf_counter(), time.process_time()
        code = enhance.main([str(model), str(scan), "--out", f"{folder}/out.nii.gz", "--device", "cpu"])
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    if code:
        raise SystemExit(code)
    # ru_maxrss would start at the peak of the parent process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    memory_gb = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    return {
        "memory_gb": memory_gb,
        "load_s": spent["load"],
        "network_s": spent["network"],
        "around_s": wall_s - spent["load"] - spent["network"],
        "around_cpu_s": cpu_s - spent["cpu"],
    }


if __name__ == "__main__":
    main()
