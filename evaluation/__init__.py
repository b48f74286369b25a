"""Evaluation: from runs or ONNX files and a shard set to metrics and a report, compared with cubic interpolation."""
