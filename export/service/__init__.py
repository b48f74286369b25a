"""Receives scans over HTTP and returns enhanced scans: a web application whose replicas on Ray Serve restore slices."""
