"""A scan from its upload to its answer: received, admitted, checked, prepared, restored, written."""
