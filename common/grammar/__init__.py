"""The grammar of all commands: what a configuration may hold, its help, and its errors. `command.py` puts it to use."""
