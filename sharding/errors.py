"""Errors that the user can mend; every command turns them into one line and exit code 2."""


class InputError(ValueError):
    """The user's input or configuration is wrong; the message says what was expected, found, where, what to do."""


class VolumeError(InputError):
    """A file that should hold one 3-D volume does not."""


class ShardSetError(InputError):
    """A shard set that is missing, incomplete, damaged, or does not fit what is asked of it."""


class RunError(RuntimeError):
    """Work that began rightly cannot go on: one line and exit code 1."""
