"""Takes a trained network; writes it as one ONNX file, compares the file with PyTorch, and runs it."""
