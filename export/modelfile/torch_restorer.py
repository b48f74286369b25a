"""Runs the network of a model file in PyTorch: slices in, restored slices out."""

import threading
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.common.allocator import keep_freed_memory
from upfield.common.cores import leave_busy_cores
from upfield.export.modelfile.file_restorer import FileRestorer, pad_batch
from upfield.export.modelfile.gpus import torch_device
from upfield.export.modelfile.stored_weights import read_network
from upfield.model.numerics import use_exact_float32


class TorchRestorer(FileRestorer):
    """Restores batches of slices with PyTorch, compiled on a GPU.

    The network is compiled for the height and width of the first batch. Slices of other sizes run uncompiled, so that
    scans of different sizes do not each wait for a compilation.
    """

    library, library_version = "torch", torch.__version__

    def __init__(
        self, path: Path, device: str = "auto", threads: int = 0, batch_size: int = 0, compiled: bool = True
    ) -> None:
        """Rebuild the network from the file.

        Args:
            path: the `.onnx` file.
            device: `auto`, `cuda` or `cpu`.
            threads: CPU threads of this process; 0 uses the cores that other processes leave free.
            batch_size: on a GPU, smaller batches are padded to this many slices, because the network would be compiled
                again for each number of slices; 0 pads nothing.
            compiled: whether to compile the network on a GPU.

        Raises:
            InputError: the file cannot be used as a model, or the device is not available.
        """
        super().__init__(path)
        self._device, self._batch_size = torch_device(device), batch_size
        self.provider = f"PyTorch on {self._device.type}"
        self._network = read_network(path, self.card).to(self._device)
        self._half = self.card.tree.get("precision") == "fp16"
        self._compiles, self._compiled_size = compiled and self._device.type == "cuda", (0, 0)
        if self._compiles:
            self._network.compile_blocks()
        if self._device.type == "cuda":
            use_exact_float32()
        else:
            keep_freed_memory()
            if threads:
                torch.set_num_threads(threads)
            else:
                leave_busy_cores()
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def run(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network: `low` `(N, 1 + 2*context, H, W)` float32 to `(N, 1, H, W)` float32, not clipped."""
        count = len(low)
        # On a CPU, slices are restored one at a time, so that memory use does not grow with N.
        parts = np.split(low, count) if self._device.type == "cpu" else [pad_batch(low, self._batch_size)]
        with self._lock:
            return np.concatenate([self._run(part) for part in parts])[:count]

    @torch.inference_mode()
    def _run(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._stopped.is_set():
            raise RuntimeError("The restorer was terminated.")
        image = torch.tensor(low, dtype=torch.float32, device=self._device)
        if self._compiles and not any(self._compiled_size):
            self._compiled_size = low.shape[2:]
        is_compiled = self._compiles and low.shape[2:] == self._compiled_size
        # A CPU computes half precision more slowly than float32, and less exactly.
        half = self._half and self._device.type == "cuda"
        with (
            torch.autocast(self._device.type, torch.float16, enabled=half),
            torch.compiler.set_stance("default" if is_compiled else "force_eager"),
        ):
            return self._network(image).float().cpu().numpy()

    def stop(self) -> None:
        """Cancel calls: the call that runs in another thread, and every later call, end with an error."""
        self._stopped.set()
