"""Runs a model file in ONNX Runtime: slices in, restored slices out."""

import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from upfield.common.cores import num_cores, num_threads
from upfield.common.errors import InputError
from upfield.export.modelfile.card import read_card

# The slices are patients' data, so ONNX Runtime must not send telemetry.
ort.disable_telemetry_events()

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# Providers of each device, in order. An operator that a provider cannot run falls back to the next one.
CHAINS = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cuda": ("cuda", "cpu"), "cpu": ("cpu",)}
# By default, cuDNN tries all algorithms, which takes seconds for each new shape and gains little.
OPTIONS: dict[str, dict[str, str]] = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}}


class OnnxRestorer:
    """Restores batches of slices with a model file; any number of threads may share it."""

    def __init__(self, path: Path, device: str = "auto", threads: int = 0, batch_size: int = 0) -> None:
        """Load the file.

        Args:
            path: the `.onnx` file.
            device: `auto`, `cuda`, `tensorrt` or `cpu`.
            threads: CPU threads; 0 uses the cores that other processes leave free.
            batch_size: on a GPU, smaller batches are padded to this many slices, because restored values depend on the
                batch's shape, and the first batch of each shape is slow; 0 pads nothing.

        Raises:
            InputError: the file cannot be used as a model, or the device is not available.
        """
        self.path = path
        self.device = _choose_device(device)
        self.card = read_card(path)
        self._session = _open_session(path, self.device, threads)
        self._run_options = ort.RunOptions()
        self.provider = self._session.get_providers()[0]
        # ONNX Runtime falls back to the CPU without an error.
        if device != "auto" and self.provider != PROVIDERS[self.device]:
            raise InputError(
                f"device: ONNX Runtime could not load {PROVIDERS[self.device]} and fell back to {self.provider}. Use "
                "--device cpu."
            )
        self._bound = BoundBatch(self._session, "cuda", batch_size) if self.provider != PROVIDERS["cpu"] else None

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the restored slice."""
        return self.card.context

    @property
    def normalisation(self) -> str:
        """Name of the method that brings intensities to [0, 1]."""
        return self.card.normalisation

    def warm_up(self, low_shape: tuple[int, int, int, int]) -> None:
        """Run a batch of zeros of this shape, because the first batch of each shape is slow, especially on a GPU."""
        self.run(np.zeros(low_shape, dtype=np.float32))

    def restore(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Restore slices.

        Args:
            low: `(N, 1 + 2*context, H, W)` float32 in [0, 1].

        Returns:
            `(N, 1, H, W)` float32, clipped to [0, 1].
        """
        return np.clip(self.run(low), 0, 1)

    def run(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the graph: `low` `(N, 1 + 2*context, H, W)` float32 to `(N, 1, H, W)` float32, not clipped."""
        low = np.ascontiguousarray(low, dtype=np.float32)
        if self._bound is not None:
            return self._bound.run(low, self._run_options)
        # Slices are restored one at a time, so that memory use does not grow with N. Batches would not be faster,
        # because the feature maps of one slice already exceed a CPU's caches.
        high = np.empty((len(low), 1, *low.shape[2:]), dtype=np.float32)
        for number in range(len(low)):
            restored = self._session.run(["high"], {"low": low[number : number + 1]}, self._run_options)[0]
            high[number] = np.asarray(restored)[0]
        return high

    def stop(self) -> None:
        """Cancel calls: the call that runs in another thread, and every later call, end at once with an error."""
        self._run_options.terminate = True


class BoundBatch:
    """Input and output memory on a device for batches of one shape; it is allocated again when the shape changes."""

    def __init__(self, session: ort.InferenceSession, device: str, batch_size: int = 0) -> None:
        """Prepare to run batches; the first batch allocates the memory.

        Args:
            session: runs the graph.
            device: `cuda` or `cpu`, where the session runs.
            batch_size: smaller batches are padded to this many slices; 0 pads nothing.
        """
        self._session, self._device, self._batch_size = session, device, batch_size
        self._lock = threading.Lock()
        self._low: ort.OrtValue | None = None

    def run(self, low: NDArray[np.float32], options: ort.RunOptions) -> NDArray[np.float32]:
        """Run `low` `(N, 1 + 2*context, H, W)`, contiguous, and return `(N, 1, H, W)`; calls wait for each other."""
        count = len(low)
        if count < self._batch_size:
            low = low[np.minimum(np.arange(self._batch_size), count - 1)]
        with self._lock:
            if self._low is None or tuple(self._low.shape()) != low.shape:
                self._low = self._bind(low.shape)
            self._low.update_inplace(low)
            self._session.run_with_iobinding(self._binding, options)
            # Copy the result, because on a CPU the next batch would overwrite it.
            return np.array(self._high.numpy()[:count], dtype=np.float32)

    def _bind(self, shape: tuple[int, ...]) -> ort.OrtValue:
        # Allocate new memory: on a CPU, a value made from the first batch's array would share the caller's memory.
        low, self._high = (
            ort.OrtValue.ortvalue_from_shape_and_type((shape[0], channels, *shape[2:]), np.float32, self._device, 0)
            for channels in (shape[1], 1)
        )
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("low", low)
        self._binding.bind_ortvalue_output("high", self._high)
        return low


def _open_session(path: Path, device: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or min(num_cores(), num_threads())
    # Between two batches, idle threads must not keep cores busy that others could use.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = [(PROVIDERS[name], OPTIONS.get(name, {})) for name in CHAINS[device]]
    try:
        return ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's error classes have no common public base class.
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: ONNX Runtime cannot load the file ({reason}). Export the run again.") from error


def _choose_device(device: str) -> str:
    driver = Path("/proc/driver/nvidia/version").exists()
    usable = {
        name for name in PROVIDERS if PROVIDERS[name] in ort.get_available_providers() and (driver or name == "cpu")
    }
    if device not in usable | {"auto"}:
        libraries = "onnxruntime-gpu with TensorRT's libraries" if device == "tensorrt" else "onnxruntime-gpu"
        raise InputError(f"device: {device} needs an NVIDIA GPU and {libraries}. Use auto or cpu.")
    chosen = device if device != "auto" else "cuda" if "cuda" in usable else "cpu"
    if chosen != "cpu":
        ort.preload_dlls()
    return chosen
