"""Takes runs or ONNX files and a shard set; gives their metrics beside those of cubic interpolation, and a report."""
