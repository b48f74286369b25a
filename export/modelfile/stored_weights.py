"""Reads a network's weights back from the graph of its model file.

The export pads, splits, stacks and transposes weights, and stores equal ones once. This module does not undo that layer
by layer. Instead, it lets the export's own code write the graph of a network whose parameters hold their own positions.
Node by node, this graph shows where each number of the file belongs.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from upfield.common.errors import InputError
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.layers import write_network
from upfield.export.modelfile.nodes import NodeWriter
from upfield.model.amir import Amir, AmirConfig


class PositionWriter(NodeWriter):
    """Writes a graph in which each number of a parameter is its position among all parameters of the network."""

    def __init__(self, half: bool) -> None:
        """Start an empty graph; `half` as in NodeWriter."""
        super().__init__(half)
        self.positions: dict[str, NDArray[np.int32]] = {}

    def weight(self, tensor: Tensor) -> str:
        """Keep the positions in a parameter of any shape, and return a name for them."""
        name = f"parameter_{len(self.positions)}"
        self.positions[name] = tensor.detach().numpy().astype(np.int32)
        return name

    island = weight


def read_network(path: Path, card: ModelCard) -> Amir:
    """Rebuild the network of a model file, in evaluation mode, on the CPU, in float32.

    Args:
        path: the model file.
        card: its metadata.

    Raises:
        InputError: the file cannot be read, or this version of upfield would not write its graph.
    """
    try:
        network = Amir(AmirConfig.from_tree(card.tree["model"])).eval()
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the sizes of its network are invalid ({error}). Export the run again.") from error
    try:
        graph = onnx.load_model(path).graph
    except Exception as error:  # The errors of onnx and protobuf have no common base class.
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: its weights cannot be read ({reason}). Export the run again.") from error
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    writer = PositionWriter(half)
    write_network(writer, with_positions(network), "low")
    writer.nodes[-1].output[0] = "high"
    try:
        values = gather(graph, writer, sum(parameter.numel() for parameter in network.parameters()))
    except ValueError as error:
        raise InputError(
            f"{path}: another version of upfield wrote its graph ({error}). Export the run again, or use --engine onnx."
        ) from error
    return with_values(network, values)


def with_positions(network: Amir) -> Amir:
    """Number all elements of all parameters from 1; 0 then marks padding. Float64 holds each number exactly."""
    counted = itertools.accumulate((parameter.numel() for parameter in network.parameters()), initial=1)
    network = network.double()
    with torch.no_grad():
        for parameter, first in zip(network.parameters(), counted, strict=False):
            parameter.copy_(torch.arange(first, first + parameter.numel(), dtype=torch.float64).view_as(parameter))
    return network


def gather(graph: onnx.GraphProto, writer: PositionWriter, count: int) -> NDArray[np.float32]:
    """Return the values `(count,)` of all elements of all parameters, 0 for those that the graph does not use.

    Raises:
        ValueError: the two graphs differ in more than the values of their parameters.
    """
    if len(graph.node) != len(writer.nodes):
        raise ValueError(f"expected {len(writer.nodes)} nodes, found {len(graph.node)}")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in writer.initializers}
    values = np.zeros(count + 1, dtype=np.float32)
    for node, expected in zip(graph.node, writer.nodes, strict=True):
        inputs = list(zip(node.input, expected.input, strict=len(node.input) == len(expected.input)))
        equal = signature(node) == signature(expected) and len(node.input) == len(expected.input)
        for name, known in inputs:
            if known in writer.positions:
                equal = equal and name in stored and place(values, writer.positions[known], stored[name])
            elif known in constants:
                equal = equal and name in stored and np.array_equal(stored[name], constants[known])
            else:
                equal = equal and name == known
        if not equal:
            raise ValueError(f"node {expected.name} differs")
    return values[1:]


def signature(node: onnx.NodeProto) -> tuple[Any, ...]:
    """Return the kind, the attributes and the outputs of a node."""
    return node.op_type, [attribute.SerializeToString() for attribute in node.attribute], list(node.output)


def place(values: NDArray[np.float32], positions: NDArray[np.int32], tensor: NDArray[Any]) -> bool:
    """Write a tensor of the file to its positions, and return whether its shape and its padding are as expected.

    Args:
        values: `(1 + elements,)`, for all parameters; the first one stands for padding.
        positions: position of each number of `tensor`, in any shape.
        tensor: numbers from the file, in the same shape.
    """
    if tensor.shape != positions.shape or tensor[positions == 0].any():
        return False
    values[positions] = tensor
    return True


def with_values(network: Amir, values: NDArray[np.float32]) -> Amir:
    """Return the network in float32 with its parameters set to `values` `(elements,)`."""
    network = network.float()
    parts = torch.from_numpy(values).split([parameter.numel() for parameter in network.parameters()])
    with torch.no_grad():
        for parameter, part in zip(network.parameters(), parts, strict=True):
            parameter.copy_(part.view_as(parameter))
    return network
