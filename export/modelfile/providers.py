"""ONNX Runtime's execution providers: whether one can run on this machine, and its options."""

import ctypes
import os
from importlib.util import find_spec
from pathlib import Path

import onnxruntime as ort

from upfield.common.errors import InputError
from upfield.common.files import hash_file, user_cache_folder
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.gpus import num_gpus, own_gpu

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# Providers of each device, in order. An operator that a provider cannot run falls back to the next one.
CHAINS = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cuda": ("cuda", "cpu"), "cpu": ("cpu",)}
# ONNX Runtime is linked against TensorRT 10. The packages of TensorRT 11 bring libraries of another name.
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
# Height and width in pixels of the smallest, the usual and the largest slice for which TensorRT builds its engine.
SMALLEST, USUAL, LARGEST = (9, 9), (221, 200), (256, 256)
USUAL_BATCH, LARGEST_BATCH = 4, 32


def choose_device(device: str) -> str:
    """Return the device that runs the graph, and load the libraries that it needs.

    Args:
        device: `auto`, `cuda`, `tensorrt` or `cpu`.

    Raises:
        InputError: the device that the user named cannot be used here.
    """
    gpu = device != "cpu" and num_gpus() > 0
    usable = {name for name in PROVIDERS if PROVIDERS[name] in ort.get_available_providers() and (gpu or name == "cpu")}
    if device not in usable | {"auto"}:
        libraries = "onnxruntime-gpu with TensorRT's libraries" if device == "tensorrt" else "onnxruntime-gpu"
        raise InputError(f"device: {device} needs an NVIDIA GPU and {libraries}. Use auto or cpu.")
    chosen = device if device != "auto" else "cuda" if "cuda" in usable else "cpu"
    if chosen != "cpu":
        ort.preload_dlls()
    if chosen == "tensorrt":
        load_tensorrt()
    return chosen


def load_tensorrt() -> None:
    """Load TensorRT's libraries from the Python package `tensorrt_libs` or from the system.

    Raises:
        InputError: a library is missing.
    """
    # ONNX Runtime has no option for TensorRT's use of TF32; the libraries read this variable when they are loaded.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    package = find_spec("tensorrt_libs")
    folders = [Path(folder) for folder in (package.submodule_search_locations if package else None) or ()]
    for name in TENSORRT_LIBRARIES:
        inside = [folder / name for folder in folders if (folder / name).is_file()]
        try:
            ctypes.CDLL(str(inside[0]) if inside else name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            cuda = str(getattr(ort, "cuda_version", None) or "13").split(".")[0]
            raise InputError(
                f"device: tensorrt cannot load {name} ({error}). Run pip install 'tensorrt-cu{cuda}-libs<11', or use "
                "--device cuda."
            ) from error


def provider_options(device: str, path: Path, card: ModelCard, batch_size: int) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a device, each with its options.

    Args:
        device: `cuda`, `tensorrt` or `cpu`.
        path: the model file.
        card: the model file's metadata.
        batch_size: slices of each batch; 0 if batches differ.
    """
    options: dict[str, dict[str, str]] = {"cpu": {}}
    if device != "cpu":
        options["cuda"] = {
            "device_id": str(own_gpu()),
            # TF32 would round the inputs of float32 products to 10 bits.
            "use_tf32": "0",
            # By default, cuDNN tries all algorithms, which takes seconds for each new shape and gains little.
            "cudnn_conv_algo_search": "HEURISTIC",
        }
    if device == "tensorrt":
        options["tensorrt"] = tensorrt_options(path, card, batch_size)
    return [(PROVIDERS[name], options[name]) for name in CHAINS[device]]


def tensorrt_options(path: Path, card: ModelCard, batch_size: int) -> dict[str, str]:
    """Return TensorRT's options: the GPU, half precision as in the model, the range of shapes, and the engine cache.

    Args:
        path: the model file.
        card: the model file's metadata.
        batch_size: slices of each batch; 0 if batches differ.
    """
    channels = 1 + 2 * card.context
    shapes = {
        "min": (1, channels, *SMALLEST),
        "opt": (batch_size or USUAL_BATCH, channels, *USUAL),
        "max": (batch_size or LARGEST_BATCH, channels, *LARGEST),
    }
    half = str(int(card.tree.get("precision") == "fp16"))
    # In half precision, TensorRT would also compute the sums of layer norm in float16.
    options = {"device_id": str(own_gpu()), "trt_fp16_enable": half, "trt_layer_norm_fp32_fallback": half}
    options |= {f"trt_profile_{name}_shapes": "low:" + "x".join(map(str, shape)) for name, shape in shapes.items()}
    return options | engine_cache(path, f"batch-{batch_size}")


def engine_cache(path: Path, profile: str) -> dict[str, str]:
    """Return the options that keep built engines in the user's cache folder, or none if it cannot be written.

    ONNX Runtime takes an engine from the cache even if only the weights of a model differ, so each model file has its
    own folder. TensorRT refuses engines of other versions, so each version has one too.

    Args:
        path: the model file.
        profile: name of the range of shapes.
    """
    version = f"onnxruntime-{ort.__version__}-tensorrt-{tensorrt_version()}"
    try:
        folder = user_cache_folder("tensorrt") / version / hash_file(path) / profile
        # An engine contains code, so no other user may write one here.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, InputError):  # InputError: the user has no home folder.
        return {}
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}


def tensorrt_version() -> int:
    """Return the version of TensorRT's library, such as 101600 for 10.16.0."""
    return ctypes.CDLL(TENSORRT_LIBRARIES[0]).getInferLibVersion()


def check_tensorrt_size(height: int, width: int) -> None:
    """Raise InputError if slices of this size are outside the range for which TensorRT builds its engine."""
    if height > LARGEST[0] or width > LARGEST[1]:
        raise InputError(
            f"device: tensorrt restores slices of up to {LARGEST[0]} x {LARGEST[1]} pixels, found {height} x {width}. "
            "Use --device cuda."
        )
