"""Takes scans and a model file; gives enhanced scans."""
