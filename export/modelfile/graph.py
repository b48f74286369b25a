"""Turns a trained network into one ONNX file; the same network always gives the same bytes."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import helper

from upfield.common.errors import RunError
from upfield.common.files import atomic_path
from upfield.export.modelfile.layers import write_network
from upfield.export.modelfile.nodes import FLOAT, NodeWriter
from upfield.model.amir import Amir

OPSET, IR_VERSION = 20, 10
# A protobuf message cannot exceed 2 GiB; 16 MiB of that stay free for the metadata.
MAX_FILE_BYTES = 2**31 - 2**24
# Bounds on a file's content besides the parameters: nodes, names, and the zeros that fill blocks of channels.
MAX_EXCESS, MAX_GRAPH_BYTES = 1.25, 2**21


def build_graph(network: Amir, half: bool) -> onnx.ModelProto:
    """Build the ONNX model: input `low` (N, C, H, W), output `high` (N, 1, H, W), both float32; N, H, W are dynamic.

    Args:
        network: in evaluation mode, on the CPU.
        half: whether weights and images inside the graph are float16; layers that need float32 keep it.

    Raises:
        RunError: the size of the model does not match that of the network's parameters.
    """
    writer = NodeWriter(half)
    last = write_network(writer, network, "low")
    writer.nodes[-1].output[0] = "high"
    assert last not in {name for node in writer.nodes for name in node.input}
    graph = helper.make_graph(
        writer.nodes,
        "amir",
        [helper.make_tensor_value_info("low", FLOAT, ["N", network.config.in_channels, "H", "W"])],
        [helper.make_tensor_value_info("high", FLOAT, ["N", network.config.out_channels, "H", "W"])],
        writer.initializers,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="upfield")
    check_size(model, network, half)
    return model


def check_size(model: onnx.ModelProto, network: Amir, half: bool) -> None:
    """Check that a model is as large as its network's parameters, so that none was lost or stored twice.

    Raises:
        RunError: the model is too small or too large.
    """
    used = (tensor for name, tensor in network.named_parameters() if not name.endswith("w_noise"))
    expected = sum(math.prod(tensor.shape) for tensor in used) * (2 if half else 4)
    size = model.ByteSize()
    if not expected <= size <= MAX_EXCESS * expected + MAX_GRAPH_BYTES:
        raise RunError(
            f"expected a graph of about {expected} bytes for the network's parameters, found {size}. The exported "
            "graph is wrong, and nothing was written."
        )


def check_graph(path: Path) -> None:
    """Run ONNX's checker on a file, with shape and type inference.

    Raises:
        RunError: the checker finds the graph invalid.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path}: the ONNX graph is invalid ({reason}). Nothing was written.") from error


@contextmanager
def write_model(model: onnx.ModelProto, out: Path, max_bytes: int = MAX_FILE_BYTES) -> Iterator[Path]:
    """Write a model to a temporary file for the caller to check, and rename it to `out` at the end.

    Until then the caller may change the metadata of `model`, because the model is serialised again before the file is
    renamed. If the caller raises an error, an existing file at `out` stays unchanged.

    If one file cannot hold the model, its weights go to a second file beside it. The name of that file contains a hash
    of the weights, so an older model at `out` keeps its own weights until it is replaced.

    Args:
        model: the model; its weights are moved out of it if it is larger than `max_bytes`.
        out: path of the finished file.
        max_bytes: size limit of a single file.

    Yields:
        Path of the temporary file.
    """
    weights: Path | None = None
    with atomic_path(out) as temporary:
        try:
            if model.ByteSize() > max_bytes:
                weights = _write_weights(model, out)
            temporary.write_bytes(model.SerializeToString(deterministic=True))
            yield temporary
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        except BaseException:
            if weights is not None:
                weights.unlink(missing_ok=True)
            raise


def _write_weights(model: onnx.ModelProto, out: Path) -> Path | None:
    """Move a model's weights to their own file, and return its path, or None if the file was there already."""
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data)
    weights = out.with_name(f"{out.stem}-{digest.hexdigest()[:12]}.data")
    is_new = not weights.exists()
    # Written to a temporary folder first, because an older model may be using the file of the same name and content.
    with TemporaryDirectory(prefix=".tmp-", dir=out.parent) as folder:
        onnx.save_model(
            model, Path(folder) / "graph", save_as_external_data=True, location=weights.name, size_threshold=1024
        )
        (Path(folder) / weights.name).replace(weights)
    return weights if is_new else None
