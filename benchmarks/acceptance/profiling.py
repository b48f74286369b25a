"""Tables of kernels by time, from torch's profiler."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from acceptance.measuring import synchronise
from acceptance.report import Report
from upfield.common.tables import text_table

# First pattern that a kernel's name matches -> family.
FAMILIES = (
    ("triton", r"triton_"),
    ("depthwise or other convolution", r"conv|wgrad|dgrad|cudnn|winograd|implicit"),
    ("matrix product", r"gemm|cutlass|cublas|sm\d+_xmma|addmm|aten::(mm|bmm)"),
    ("layer norm", r"layer_norm|LayerNorm|GammaBeta"),
    ("copy and cast", r"copy|Copy|Memcpy|memcpy|CatArray|cat"),
    ("fill", r"Memset|FillFunctor|fill|zero"),
    ("reduction", r"reduce|Reduce|sum|softmax|SoftMax"),
    ("sort", r"[Ss]ort|topk|TopK|gatherTopK"),
    ("optimizer", r"Adam|adam|multi_tensor"),
    ("elementwise", r"elementwise|gelu|mul|add"),
)

# The profiler also lists spans of time on the device under these names.
ANNOTATIONS = ("ProfilerStep", "Optimizer.", "##", "Torch-Compiled Region")


@dataclass(frozen=True)
class Kernel:
    """One kernel of a profile; on a CPU, one operator."""

    name: str
    time_ms: float
    """Time in each step."""
    launches: float
    """Number of launches in each step."""

    @property
    def family(self) -> str:
        """Kind of work."""
        return next((family for family, pattern in FAMILIES if re.search(pattern, self.name)), "other")


def profile_steps(step: Callable[[], object], device: str, steps: int) -> list[Kernel]:
    """Profile a warm step and return its kernels by time, the longest first."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        synchronise(device)
    kernels: list[Kernel] = []
    for row in profiler.key_averages():
        on_device = row.device_type == DeviceType.CUDA
        if on_device != (device == "cuda") or getattr(row, "is_user_annotation", False):
            continue
        time_us = row.self_device_time_total if on_device else row.self_cpu_time_total
        if time_us > 0 and not row.key.startswith(ANNOTATIONS):
            kernels.append(Kernel(row.key, 1e-3 * time_us / steps, row.count / steps))
    return sorted(kernels, key=lambda kernel: -kernel.time_ms)


def report_profile(report: Report, step: Callable[[], object], step_s: float, prefix: str, title: str) -> list[Kernel]:
    """Profile a warm step, and report its launches, its time by family, and its table of kernels.

    Args:
        report: report of the check.
        step: takes a step.
        step_s: seconds of a step without the profiler.
        prefix: prefix of the figures.
        title: title of the table.
    """
    kernels = profile_steps(step, report.device, report.pick(gpu=3, cpu=1))
    report.figure(f"{prefix}launches", sum(kernel.launches for kernel in kernels))
    report.figure(f"{prefix}ms_by_family", families_ms(kernels))
    report.text(f"{title}, {1e3 * step_s:.1f} ms", kernel_table(kernels))
    return kernels


def kernel_table(kernels: list[Kernel], rows: int = 40) -> str:
    """Format the longest kernels, and then all kernels by family."""
    total = sum(kernel.time_ms for kernel in kernels) or 1.0

    def cells(name: str, time_ms: float, launches: float) -> list[str]:
        return [name, f"{time_ms:.3f}", f"{time_ms / total:.1%}", f"{launches:g}"]

    header = ["kernel", "ms", "share", "launches"]
    longest = [cells(short_name(kernel.name), kernel.time_ms, kernel.launches) for kernel in kernels[:rows]]
    rest = kernels[rows:]
    longest.append(cells(f"{len(rest)} others", sum(k.time_ms for k in rest), sum(k.launches for k in rest)))
    grouped = [
        cells(family, time_ms, sum(kernel.launches for kernel in kernels if kernel.family == family))
        for family, time_ms in families_ms(kernels).items()
    ]
    return "\n\n".join(text_table(header, body, numeric=True) for body in (longest, grouped))


def short_name(name: str, length: int = 90) -> str:
    """Shorten a kernel's name by leaving out its namespaces and arguments."""
    name = re.sub(r"\b(void|at::native::|\(anonymous namespace\)::|c10::|cudnn::|std::)\s*", "", name)
    return name if len(name) <= length else name[: length - 3] + "..."


def families_ms(kernels: list[Kernel]) -> dict[str, float]:
    """Return the time of each family of kernels in each step, the longest first."""
    times: dict[str, float] = {}
    for kernel in kernels:
        times[kernel.family] = times.get(kernel.family, 0.0) + kernel.time_ms
    return dict(sorted(times.items(), key=lambda item: -item[1]))
