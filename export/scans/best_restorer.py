"""Runs a run's best model in PyTorch: slices in, restored slices out."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.common.allocator import keep_freed_memory
from upfield.common.errors import InputError
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.export_run import read_run
from upfield.export.modelfile.gpus import torch_device
from upfield.export.modelfile.run_metadata import describe_run
from upfield.model.numerics import use_exact_float32


class BestRestorer:
    """Restores batches of slices with a run's best model."""

    def __init__(self, run: Path, device: str = "auto") -> None:
        """Load the best model of a run.

        Args:
            run: the run folder.
            device: `auto`, `cuda` or `cpu`.

        Raises:
            InputError: the run has no best model, or `device` is `cuda` and there is no GPU.
        """
        self.run = run
        self.device = torch_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        else:
            use_exact_float32()
        self.best = read_run(run)
        self.context, self.normalisation = self.best.context, self.best.normalisation
        self.provider = f"PyTorch on {self.device.type}"
        self._network = self.best.network.to(self.device)

    @property
    def card(self) -> ModelCard:
        """The metadata that a model file of this run would have, without the comparison with PyTorch.

        Raises:
            InputError: an earlier version wrote the run and did not record the grids of its training data.
        """
        if self.best.geometry is None:
            raise InputError(
                f"{self.run} does not record the grids of its training data. Export the run, and load the model file."
            )
        return ModelCard(describe_run(self.best, self.run, "fp32", None) | {"geometry": self.best.geometry})

    @torch.inference_mode()
    def restore(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map `(N, 1 + 2*context, H, W)` in [0, 1] to `(N, 1, H, W)` in [0, 1]."""
        return self._network(torch.from_numpy(low).to(self.device)).clamp(0, 1).cpu().numpy()
