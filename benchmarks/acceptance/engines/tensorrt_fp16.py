"""ONNX Runtime's TensorRT provider for a file in half precision. Loading it builds the engine, which takes minutes."""

from acceptance.engines.engine_check import check_engine
from acceptance.report import Report
from upfield.export.modelfile.onnx_restorer import OnnxRestorer


def run(report: Report) -> None:
    """Build the engine and measure it."""
    check_engine(report, lambda path: OnnxRestorer(path, "tensorrt"), ("fp16",))
