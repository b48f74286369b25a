"""What every check of an engine measures: loading, the first batch, slices per second, and the distance to float32."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acceptance.measuring import median_s
from acceptance.modelfiles import write_untrained_model
from acceptance.report import Report
from acceptance.stepping import SMALLEST
from acceptance.tracing import WHOLE_SLICE
from upfield.export.modelfile.file_restorer import FileRestorer
from upfield.export.modelfile.parity import draw
from upfield.model.amir import Amir, AmirConfig

# The relative error of a result is about 1e-3 if TF32 rounds the inputs of each product to 10 bits, and 1e-5 without.
TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}
# Slices that the CPU restores for comparison, one at a time.
NUM_COMPARED = 2


class EngineCheck:
    """Measures one engine with a seeded network in a file of one precision."""

    def __init__(self, report: Report, precision: str) -> None:
        """Write the file and compute what PyTorch on the CPU restores.

        Args:
            report: receives the figures.
            precision: `fp32` or `fp16`.
        """
        self.report, self.precision = report, precision
        config = report.pick(gpu=AmirConfig.preset("official"), cpu=SMALLEST.amir(context=0))
        self.size = report.pick(gpu=WHOLE_SLICE, cpu=(32, 24))
        self.batches = report.pick(gpu=(4, 32), cpu=(1, 2))
        torch.manual_seed(0)
        network = Amir(config).eval()
        self.path = report.work / f"{precision}.onnx"
        write_untrained_model(network, self.path, precision)
        rings = draw(*self.size)
        self.low = np.stack([np.roll(rings, 7 * number, axis=0)[None] for number in range(max(self.batches))])
        with torch.inference_mode():
            parts = [network(torch.from_numpy(part)) for part in np.split(self.low[:NUM_COMPARED], NUM_COMPARED)]
        self.expected = torch.cat(parts).numpy()

    def run(self, restorer: FileRestorer, load_s: float) -> None:
        """Report the times of an engine that took `load_s` seconds to load, and compare its slices."""
        self.report.figure(f"{self.precision}_provider", restorer.provider)
        self.report.figure(f"{self.precision}_load_s", load_s)
        for batch in self.batches:
            name = f"{self.precision}_batch_{batch}"
            low = self.low[:batch]
            begun = time.perf_counter()
            restored = restorer.run(low)
            self.report.figure(f"{name}_first_s", time.perf_counter() - begun)
            # The host's clock, because a call includes the copies to the device and back.
            repeats = self.report.pick(gpu=8, cpu=3)
            seconds = median_s(lambda low=low: restorer.run(low), "cpu", repeats, warm=0)
            self.report.figure(f"{name}_slices_per_s", batch / seconds)
            self.compare(name, restored)

    def compare(self, name: str, restored: NDArray[np.float32]) -> None:
        """Expect slices `(N, 1, H, W)` near PyTorch's on the CPU in float32."""
        error, limit = self.error(restored), TOLERANCE[self.precision]
        self.report.figure(f"{name}_relative_error", error)
        self.report.expect(f"{name}: at most {limit:g} from PyTorch in float32", error <= limit, f"{error:.2g}")

    def error(self, restored: NDArray[np.float32]) -> float:
        """Return the norm of the difference from PyTorch, relative to what the network adds, for `(N, 1, H, W)`."""
        count = min(len(restored), NUM_COMPARED)
        expected = self.expected[:count].astype(np.float64)
        return float(np.linalg.norm(restored[:count] - expected) / np.linalg.norm(expected - self.low[:count]))

    def show_tf32(self, rounded: NDArray[np.float32]) -> None:
        """Expect that the comparison would notice TF32, given slices `(N, 1, H, W)` restored with it."""
        error, limit = self.error(rounded), TOLERANCE["fp32"]
        self.report.figure("relative_error_with_tf32", error)
        self.report.expect("the comparison notices TF32", error > limit, f"{error:.2g} with it, limit {limit:g}")


def check_engine(
    report: Report, open_engine: Callable[[Path], FileRestorer], precisions: Sequence[str]
) -> dict[str, tuple[EngineCheck, FileRestorer]]:
    """Measure an engine for a file of each precision, and return the checks. An error in one does not stop the next.

    Args:
        report: receives the figures.
        open_engine: loads a model file.
        precisions: `fp32`, `fp16` or both.
    """
    checks: dict[str, tuple[EngineCheck, FileRestorer]] = {}
    for precision in precisions:
        try:
            check = EngineCheck(report, precision)
            begun = time.perf_counter()
            restorer = open_engine(check.path)
            check.run(restorer, time.perf_counter() - begun)
            checks[precision] = check, restorer
        except Exception as error:
            report.fail(precision, error)
    return checks
