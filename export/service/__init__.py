"""The same over HTTP: a web application in front of replicas on Ray Serve."""
