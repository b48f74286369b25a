"""A model file in ONNX Runtime: what it says of itself, and slices through it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from upfield.sharding.errors import InputError

FORMAT = "upfield-model"
VERSION = 1
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


@dataclass(frozen=True)
class ModelCard:
    """A model file's metadata."""

    tree: dict[str, Any]
    """All of it; see export/graph.py for what is written."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the one restored."""
        return self.tree["context"]

    @property
    def normalisation(self) -> str:
        """How intensities must be brought to [0, 1]."""
        return self.tree["normalisation"]


class OnnxRestorer:
    """Restores batches of slices with a model file."""

    def __init__(self, path: Path, device: str = "auto", threads: int = 0) -> None:
        """Load the file.

        Args:
            path: the `.onnx` file.
            device: `auto`, `cuda` or `cpu`.
            threads: to compute with on the CPU; 0 takes all cores.

        Raises:
            InputError: missing, not a model file of ours, or CUDA asked for where it cannot run.
        """
        self.path = path
        self.device = _choose_device(device)
        if not path.is_file():
            raise InputError(f"{path}: expected an ONNX file, found none; make one with upfield export")
        options = ort.SessionOptions()
        providers = list(dict.fromkeys((PROVIDERS[self.device], PROVIDERS["cpu"])))
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's error classes share no public base
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: expected an ONNX file that ONNX Runtime can load, found: {reason}") from error
        self._run_options = ort.RunOptions()
        self.provider = self._session.get_providers()[0]
        # ONNX Runtime falls back to the CPU without a word; who asked for CUDA by name gets an error instead.
        if device == "cuda" and self.provider != PROVIDERS[self.device]:
            raise InputError(
                f"device: expected {PROVIDERS[self.device]} to load, found {self.provider}; try --device cpu"
            )
        self.card = self._read_card()

    def _read_card(self) -> ModelCard:
        custom = self._session.get_modelmeta().custom_metadata_map
        try:
            tree = {key: json.loads(value) for key, value in custom.items()}
            found = (tree["format"], tree["format_version"])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{self.path}: expected a model file written by upfield export, found an ONNX file without its metadata"
            ) from error
        if found != (FORMAT, VERSION):
            raise InputError(f"{self.path}: expected format {(FORMAT, VERSION)}, found {found}; export the run again")
        return ModelCard(tree)

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the one restored."""
        return self.card.context

    @property
    def normalisation(self) -> str:
        """How intensities must be brought to [0, 1]."""
        return self.card.normalisation

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
        output = self._session.run(["high"], {"low": np.ascontiguousarray(low)}, self._run_options)[0]
        return np.asarray(output, dtype=np.float32)

    def stop(self) -> None:
        """Make what runs in another thread end at once, and all that is still to run, with an error."""
        self._run_options.terminate = True


def _choose_device(device: str) -> str:
    has_gpu = PROVIDERS["cuda"] in ort.get_available_providers() and Path("/proc/driver/nvidia/version").exists()
    if device == "cuda" and not has_gpu:
        raise InputError(
            "device: expected an NVIDIA GPU and onnxruntime-gpu for --device cuda, found none; use auto or cpu"
        )
    if device != "cpu" and has_gpu:
        ort.preload_dlls()
        return "cuda"
    return "cpu"
