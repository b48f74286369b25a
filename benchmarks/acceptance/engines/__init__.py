"""Checks of `benchmarks/gpu_inference.py`: the engines that run a model file, each at two batch sizes."""
