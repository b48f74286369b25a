"""Takes a trained network; gives one ONNX file and the proof that it computes the same."""
