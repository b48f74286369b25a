"""Runs a model file in ONNX Runtime: slices in, restored slices out."""

import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from upfield.common.cores import num_cores, num_threads
from upfield.common.errors import InputError
from upfield.common.progress import say
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.file_restorer import FileRestorer, pad_batch
from upfield.export.modelfile.gpus import own_gpu
from upfield.export.modelfile.providers import (
    PROVIDERS,
    SMALLEST,
    check_tensorrt_size,
    choose_device,
    provider_options,
)

# The slices are patients' data, so ONNX Runtime must not send telemetry.
ort.disable_telemetry_events()
# ONNX Runtime's levels of log messages.
ERROR, FATAL = 3, 4


class OnnxRestorer(FileRestorer):
    """Restores batches of slices in ONNX Runtime."""

    library, library_version = "onnxruntime", ort.__version__

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
        self.device = choose_device(device)
        super().__init__(path)
        self._session = _open_session(path, provider_options(self.device, path, self.card, batch_size), threads)
        if problem := _problem_on_gpu(self._session, self.device, self.card):
            problem = f"device: ONNX Runtime cannot use the GPU ({problem})"
            if device != "auto":
                raise InputError(f"{problem}. Run pip install 'onnxruntime-gpu[cuda,cudnn]', or use --device cpu.")
            say(f"{problem} and uses the CPU; pip install 'onnxruntime-gpu[cuda,cudnn]' installs its libraries")
            self.device = "cpu"
            self._session = _open_session(path, provider_options("cpu", path, self.card, batch_size), threads)
        self._run_options = ort.RunOptions()
        self.provider = PROVIDERS[self.device]
        self._bound = BoundBatch(self._session, "cuda", batch_size, own_gpu()) if self.device != "cpu" else None

    def run(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the graph: `low` `(N, 1 + 2*context, H, W)` float32 to `(N, 1, H, W)` float32, not clipped."""
        low = np.ascontiguousarray(low, dtype=np.float32)
        if self.device == "tensorrt":
            check_tensorrt_size(*low.shape[2:])
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

    def __init__(self, session: ort.InferenceSession, device: str, batch_size: int = 0, index: int = 0) -> None:
        """Prepare to run batches; the first batch allocates the memory.

        Args:
            session: runs the graph.
            device: `cuda` or `cpu`, where the session runs.
            batch_size: smaller batches are padded to this many slices; 0 pads nothing.
            index: number of the GPU.
        """
        self._session, self._device, self._batch_size, self._index = session, device, batch_size, index
        self._lock = threading.Lock()
        self._low: ort.OrtValue | None = None

    def run(self, low: NDArray[np.float32], options: ort.RunOptions) -> NDArray[np.float32]:
        """Run `low` `(N, 1 + 2*context, H, W)`, contiguous, and return `(N, 1, H, W)`; calls wait for each other."""
        count = len(low)
        low = pad_batch(low, self._batch_size)
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
            ort.OrtValue.ortvalue_from_shape_and_type(
                (shape[0], channels, *shape[2:]), np.float32, self._device, self._index
            )
            for channels in (shape[1], 1)
        )
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("low", low)
        self._binding.bind_ortvalue_output("high", self._high)
        return low


def _open_session(path: Path, providers: list[tuple[str, dict[str, str]]], threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = ERROR
    options.intra_op_num_threads = threads or min(num_cores(), num_threads())
    # Between two batches, idle threads must not keep cores busy that others could use.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's error classes have no common public base class.
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: ONNX Runtime cannot load the file ({reason}). Export the run again.") from error


def _problem_on_gpu(session: ort.InferenceSession, device: str, card: ModelCard) -> str:
    """Return the reason why a session cannot run on its GPU, or an empty string if it can, or if it needs no GPU.

    ONNX Runtime falls back to the CPU without an error if it cannot load a provider. If only cuDNN is missing, the
    session opens, and its first convolution fails.
    """
    if device == "cpu":
        return ""
    if session.get_providers()[0] != PROVIDERS[device]:
        return f"{PROVIDERS[device]} could not be loaded"
    options = ort.RunOptions()
    options.log_severity_level = FATAL
    try:
        session.run(["high"], {"low": np.zeros((1, 1 + 2 * card.context, *SMALLEST), np.float32)}, options)
    except Exception as error:  # ONNX Runtime's error classes have no common public base class.
        return str(error).splitlines()[0].rpartition(" : ")[2]
    return ""
