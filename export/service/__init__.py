"""Takes scans over HTTP; returns enhanced scans: a web application in front of replicas on Ray Serve."""
