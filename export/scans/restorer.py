"""A model file in ONNX Runtime: what it says of itself, and slices through it."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from upfield.common.cores import num_cores
from upfield.common.errors import InputError

# What runs here is somebody's scan: the library reports nothing to anybody.
ort.disable_telemetry_events()

FORMAT = "upfield-model"
VERSION = 1
NEEDED = ("config", "context", "data_sha256", "model", "normalisation", "step")
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# What each device runs on; later ones take the operators that earlier ones cannot.
CHAINS = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cuda": ("cuda", "cpu"), "cpu": ("cpu",)}
# Trying all algorithms takes seconds for every new shape, and gains little.
OPTIONS: dict[str, dict[str, str]] = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}}


@dataclass(frozen=True)
class ModelCard:
    """A model file's metadata."""

    tree: dict[str, Any]
    """All of it; see `describe` in export/modelfile/card.py for what is written."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the one restored."""
        return self.tree["context"]

    @property
    def normalisation(self) -> str:
        """How intensities must be brought to [0, 1]."""
        return self.tree["normalisation"]


def read_card(path: Path) -> ModelCard:
    """Read a model file's metadata, without a session, which takes seconds.

    Raises:
        InputError: missing, damaged, not a model file of ours, or one of another version.
    """
    if path.is_dir():
        raise InputError(f"{path}: expected an ONNX file, found a folder; name the file in it")
    if not path.is_file():
        raise InputError(f"{path}: expected an ONNX file, found none; make one with upfield export")
    custom = _read_metadata(path)
    if custom is None:
        raise InputError(
            f"{path}: expected an ONNX file, found one that is cut short, damaged or of another kind; copy it again, "
            "or export the run again"
        )
    if not {"format", "format_version"} <= custom.keys():
        raise InputError(
            f"{path}: expected an ONNX file written by upfield export, found one without its metadata; export a run"
        )
    try:
        tree = {key: json.loads(value) for key, value in custom.items()}
    except ValueError as error:
        raise InputError(f"{path}: expected JSON in its metadata, found: {error}; export the run again") from error
    _expect_version(tree, path)
    if missing := [key for key in NEEDED if key not in tree]:
        raise InputError(f"{path}: expected {', '.join(missing)} in its metadata, found none; export the run again")
    return ModelCard(tree)


def is_model_file(path: Path) -> bool:
    """Tell whether a file is one that upfield export wrote, of any version."""
    custom = _read_metadata(path) if path.is_file() else None
    return (custom or {}).get("format") == json.dumps(FORMAT)


def _read_metadata(path: Path) -> dict[str, str] | None:
    """Give an ONNX file's metadata; None where it is none."""
    # Here, as only the reading of a file needs it.
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError:
        return None
    return {entry.key: entry.value for entry in model.metadata_props} if model.graph.node else None


def _expect_version(tree: dict[str, Any], path: Path) -> None:
    name, version = tree["format"], tree["format_version"]
    if name != FORMAT or not isinstance(version, int):
        raise InputError(f"{path}: expected format {FORMAT} {VERSION}, found {name} {version}; export the run again")
    if version > VERSION:
        raise InputError(
            f"{path}: expected format version {VERSION}, found {version}, which a newer upfield wrote; update this one"
        )
    if version < VERSION:
        raise InputError(f"{path}: expected format version {VERSION}, found {version}; export the run again")


class OnnxRestorer:
    """Restores batches of slices with a model file; any number of threads may call it."""

    def __init__(self, path: Path, device: str = "auto", threads: int = 0, batch_size: int = 0) -> None:
        """Load the file.

        Args:
            path: the `.onnx` file.
            device: `auto`, `cuda`, `tensorrt` or `cpu`.
            threads: to compute with on the CPU; 0 takes all cores that this process may use.
            batch_size: slices that smaller batches are filled up to on a GPU, where values depend on a batch's shape
                and every new one is slow; 0 leaves them as they come.

        Raises:
            InputError: missing, not a model file of ours, or a device asked for that cannot run.
        """
        self.path = path
        self.device = _choose_device(device)
        self.card = read_card(path)
        self._session = _open_session(path, self.device, threads)
        self._run_options = ort.RunOptions()
        self.provider = self._session.get_providers()[0]
        # ONNX Runtime falls back without a word; who asked for a device by name gets an error instead.
        if device != "auto" and self.provider != PROVIDERS[self.device]:
            raise InputError(
                f"device: expected {PROVIDERS[self.device]} to load, found {self.provider}; try --device cpu"
            )
        self._bound = BoundBatch(self._session, "cuda", batch_size) if self.provider != PROVIDERS["cpu"] else None

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the one restored."""
        return self.card.context

    @property
    def normalisation(self) -> str:
        """How intensities must be brought to [0, 1]."""
        return self.card.normalisation

    def warm_up(self, low_shape: tuple[int, int, int, int]) -> None:
        """Run once on a batch of this shape: the first of each shape is slow, above all on a GPU."""
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
        """Give the graph's own output `(N, 1, H, W)` for `low` `(N, 1 + 2*context, H, W)`, both float32."""
        low = np.ascontiguousarray(low, dtype=np.float32)
        if self._bound is not None:
            return self._bound.run(low, self._run_options)
        # One by one: a slice's inner images outgrow a CPU's caches by themselves, and memory does not grow with N.
        high = np.empty((len(low), 1, *low.shape[2:]), dtype=np.float32)
        for number in range(len(low)):
            found = self._session.run(["high"], {"low": low[number : number + 1]}, self._run_options)[0]
            high[number] = np.asarray(found)[0]
        return high

    def stop(self) -> None:
        """Make what runs in another thread end at once, and all that is still to run, with an error."""
        self._run_options.terminate = True


class BoundBatch:
    """Memory on a device for batches of one shape, in which they are put and computed: allocated when it changes."""

    def __init__(self, session: ort.InferenceSession, device: str, batch_size: int = 0) -> None:
        """Take a session, the name of its device, `cuda` or `cpu`, and the slices that batches are filled up to."""
        self._session, self._device, self._batch_size = session, device, batch_size
        self._lock = threading.Lock()
        self._low: ort.OrtValue | None = None

    def run(self, low: NDArray[np.float32], options: ort.RunOptions) -> NDArray[np.float32]:
        """Give the output `(N, 1, H, W)` for `low` `(N, 1 + 2*context, H, W)`, contiguous; one call at a time."""
        count = len(low)
        if count < self._batch_size:
            low = low[np.minimum(np.arange(self._batch_size), count - 1)]
        with self._lock:
            if self._low is None or tuple(self._low.shape()) != low.shape:
                self._low = self._bind(low.shape)
            self._low.update_inplace(low)
            self._session.run_with_iobinding(self._binding, options)
            # A copy: on a CPU, the array would be the memory that the next batch is computed in.
            return np.array(self._high.numpy()[:count], dtype=np.float32)

    def _bind(self, shape: tuple[int, ...]) -> ort.OrtValue:
        # Not made from the first batch: on a CPU it would be the caller's own memory.
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
    options.intra_op_num_threads = threads or num_cores()
    # Between two batches no thread keeps a core busy that others could use.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = [(PROVIDERS[name], OPTIONS.get(name, {})) for name in CHAINS[device]]
    try:
        return ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's error classes share no public base
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: expected an ONNX file that ONNX Runtime can load, found: {reason}") from error


def _choose_device(device: str) -> str:
    driver = Path("/proc/driver/nvidia/version").exists()
    able = {
        name for name in PROVIDERS if PROVIDERS[name] in ort.get_available_providers() and (driver or name == "cpu")
    }
    if device not in able | {"auto"}:
        more = " with TensorRT's libraries" if device == "tensorrt" else ""
        raise InputError(
            f"device: expected an NVIDIA GPU and onnxruntime-gpu{more} for --device {device}, found none; "
            "use auto or cpu"
        )
    chosen = device if device != "auto" else "cuda" if "cuda" in able else "cpu"
    if chosen != "cpu":
        ort.preload_dlls()
    return chosen
