"""Failures that one process meets alone: how they are recognised, and the sentences that report them."""
