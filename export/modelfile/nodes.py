"""Writes the nodes of an ONNX graph one by one, with numbered names, so that equal networks become equal bytes."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


class NodeWriter:
    """Collects nodes and constants; images are `(N, C, H, W)` in the graph's precision, float32 or float16.

    Constants and layers that stay float32 in a float16 graph are called islands.
    """

    def __init__(self, half: bool) -> None:
        """Start an empty graph.

        Args:
            half: whether images and weights are float16.
        """
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and return the name of the output."""
        return self.ops(kind, *inputs, num_outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, num_outputs: int, **attributes: Any) -> list[str]:
        """Add a node, and return the names of its outputs."""
        number = len(self.nodes)
        outputs = [f"{kind}_{number}"] if num_outputs == 1 else [f"{kind}_{number}_{i}" for i in range(num_outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=f"node_{number}", **attributes))
        return outputs

    def weight(self, tensor: Tensor) -> str:
        """Store a parameter of any shape in the graph's precision, and return its name."""
        return self.constant(tensor.detach().numpy().astype(np.float16 if self.half else np.float32))

    def island(self, tensor: Tensor) -> str:
        """Store a parameter of any shape in float32, and return its name."""
        return self.constant(tensor.detach().numpy().astype(np.float32))

    def integers(self, *values: int) -> str:
        """Store int64 values (shapes, dimensions or positions) as a vector, and return its name."""
        return self.constant(np.array(values, dtype=np.int64))

    def index(self, value: int) -> str:
        """Store an int64 scalar, and return its name."""
        return self.constant(np.array(value, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """Store a float32 scalar, and return its name."""
        return self.constant(np.array(value, dtype=np.float32))

    def constant(self, array: NDArray[Any]) -> str:
        """Store a constant of any shape, and return its name; equal constants are stored once."""
        array = np.ascontiguousarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def to_island(self, name: str) -> str:
        """Cast an image to float32 if the graph is float16, and return its name."""
        return self.op("Cast", name, to=FLOAT) if self.half else name

    def from_island(self, name: str) -> str:
        """Cast a float32 image to float16 if the graph is float16, and return its name."""
        return self.op("Cast", name, to=HALF) if self.half else name
