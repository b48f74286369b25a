"""Takes a run; writes one ONNX file, and with that file enhances scans, from files or over HTTP."""
