"""A trained network -> one ONNX file with its metadata: the same network gives the same bytes."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import helper

from upfield.common.errors import RunError
from upfield.common.files import atomic_path
from upfield.export.modelfile.layers import write_network
from upfield.export.modelfile.nodes import FLOAT, NodeWriter
from upfield.export.scans.restorer import FORMAT, VERSION
from upfield.model.amir import Amir

OPSET, IR_VERSION = 20, 10
# A protobuf message ends at 2 GiB; what the metadata may take is left free.
MAX_FILE_BYTES = 2**31 - 2**24
# What a file may hold beyond its parameters: nodes, names, and channels filled up to whole blocks.
MAX_EXCESS, MAX_GRAPH_BYTES = 1.25, 2**21


def build_graph(network: Amir, half: bool) -> onnx.ModelProto:
    """Give the graph: input `low` (N, C, H, W), output `high` (N, 1, H, W), float32, all of N, H, W dynamic.

    Args:
        network: in evaluation mode, on the CPU.
        half: weights and images within are float16, with float32 where half precision would not do.

    Raises:
        RunError: its size is not that of the network's parameters.
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
    """Compare a graph's size with its network's parameters: what was lost, or stored twice, shows.

    Raises:
        RunError: it is too small or too large.
    """
    used = (tensor for name, tensor in network.named_parameters() if not name.endswith("w_noise"))
    expected = sum(math.prod(tensor.shape) for tensor in used) * (2 if half else 4)
    found = model.ByteSize()
    if not expected <= found <= MAX_EXCESS * expected + MAX_GRAPH_BYTES:
        raise RunError(
            f"expected a graph of about {expected} bytes for the network's parameters, found {found}; "
            "the export is wrong, nothing was written"
        )


def check_graph(path: Path) -> None:
    """Let ONNX's own checker read a file, with inferred shapes and types.

    Raises:
        RunError: it finds the graph wrong.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path}: expected a valid ONNX graph, found: {reason}; nothing was written") from error


def add_metadata(model: onnx.ModelProto, card: dict[str, Any]) -> None:
    """Put metadata in a model, one JSON text for each key, in place of what was there."""
    del model.metadata_props[:]
    for key, value in sorted(({"format": FORMAT, "format_version": VERSION} | card).items()):
        model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True, allow_nan=False))


@contextmanager
def written(model: onnx.ModelProto, out: Path, max_bytes: int = MAX_FILE_BYTES) -> Iterator[Path]:
    """Write a model to a temporary file, let the caller prove it and change its metadata, and then put it at `out`.

    Weights go to a second file beside it only where one file cannot hold the model. That file's name has their hash, so
    that an older model which is replaced keeps its own until the very end.

    Args:
        model: what is written; larger models lose their weights to the second file.
        out: the final name.
        max_bytes: the largest single file.
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
    """Move a model's weights to their file, and give it where it is new."""
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data)
    weights = out.with_name(f"{out.stem}-{digest.hexdigest()[:12]}.data")
    is_new = not weights.exists()
    # In a folder of its own first: an older model may be using a file of the same content.
    with TemporaryDirectory(prefix=".tmp-", dir=out.parent) as folder:
        onnx.save_model(
            model, Path(folder) / "graph", save_as_external_data=True, location=weights.name, size_threshold=1024
        )
        (Path(folder) / weights.name).replace(weights)
    return weights if is_new else None
