"""Simulated nodes of a cluster, and the servers that they read from, for benchmarks/remote.py."""
