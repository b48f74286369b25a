"""The engines that run a model file: ONNX Runtime, or PyTorch."""

from pathlib import Path

from upfield.export.configuration import Engine
from upfield.export.modelfile.file_restorer import FileRestorer


def open_model_file(
    path: Path, engine: Engine = "onnx", device: str = "auto", threads: int = 0, batch_size: int = 0
) -> FileRestorer:
    """Load a model file in an engine.

    Args:
        path: the `.onnx` file.
        engine: `onnx` (ONNX Runtime) or `torch` (PyTorch).
        device: `auto`, `cuda`, `tensorrt` or `cpu`.
        threads: CPU threads; 0 uses the cores that other processes leave free.
        batch_size: on a GPU, smaller batches are padded to this many slices; 0 pads nothing.

    Raises:
        InputError: the file cannot be used as a model, or the device is not available.
    """
    # Only the chosen engine's library is imported, which takes seconds.
    if engine == "torch":
        from upfield.export.modelfile.torch_restorer import TorchRestorer

        return TorchRestorer(path, device, threads, batch_size)
    from upfield.export.modelfile.onnx_restorer import OnnxRestorer

    return OnnxRestorer(path, device, threads, batch_size)
