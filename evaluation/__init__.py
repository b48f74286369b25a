"""Evaluation: measures runs or ONNX files and cubic interpolation on a shard set, and writes metrics and a report."""
