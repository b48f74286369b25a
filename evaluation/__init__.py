"""Takes a run or an ONNX file and a shard set; gives metrics beside cubic interpolation, pictures and a report."""
