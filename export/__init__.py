"""Takes a run; gives one ONNX file, and with it enhanced NIfTI volumes, through ONNX Runtime."""
