"""Takes a run; writes its model as one ONNX file, and uses that file to enhance scans, from files or over HTTP."""
