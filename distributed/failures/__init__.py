"""Failures of single processes: how to recognise them, and the messages that report them."""
