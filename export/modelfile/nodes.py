"""Nodes of an ONNX graph written one by one: names are numbers in order, so that equal networks give equal bytes."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


class NodeWriter:
    """Collects nodes and constants; images are `(N, C, H, W)` in the writer's precision, float32 or float16."""

    def __init__(self, half: bool) -> None:
        """Begin an empty graph.

        Args:
            half: images and weights are float16; what is called an island stays float32.
        """
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output and give that output's name."""
        return self.ops(kind, *inputs, num_outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, num_outputs: int, **attributes: Any) -> list[str]:
        """Add a node and give its outputs' names."""
        number = len(self.nodes)
        outputs = [f"{kind}_{number}"] if num_outputs == 1 else [f"{kind}_{number}_{i}" for i in range(num_outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=f"node_{number}", **attributes))
        return outputs

    def weight(self, tensor: Tensor) -> str:
        """Give the name of a parameter, of any shape, in the graph's precision."""
        return self.constant(tensor.detach().numpy().astype(np.float16 if self.half else np.float32))

    def island(self, tensor: Tensor) -> str:
        """Give the name of a parameter, of any shape, in float32."""
        return self.constant(tensor.detach().numpy().astype(np.float32))

    def integers(self, *values: int) -> str:
        """Give the name of a vector of integers: shapes, axes and places."""
        return self.constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """Give the name of a float32 number."""
        return self.constant(np.array(value, dtype=np.float32))

    def constant(self, array: NDArray[Any]) -> str:
        """Give the name of a constant of any shape; equal ones are stored once."""
        array = np.ascontiguousarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def to_island(self, name: str) -> str:
        """Turn an image to float32, where it is not."""
        return self.op("Cast", name, to=FLOAT) if self.half else name

    def from_island(self, name: str) -> str:
        """Turn an image to the graph's precision, where it is not."""
        return self.op("Cast", name, to=HALF) if self.half else name
