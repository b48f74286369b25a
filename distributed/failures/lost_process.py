"""The loss of another process of the job: how to recognise it, and the message that reports it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from upfield.common.environment.job_errors import describe_process
from upfield.common.errors import (
    CommandError,
    FetchError,
    InputError,
    MemoryShortageError,
    RunError,
    WrongContentError,
)

REPORTED, STORE_TIMEOUT = "upfield/reported", timedelta(seconds=5)
# Waits for the number of a signal on standard input, and prints a message when it arrives. Passes all other numbers on.
WATCHER = """
import os, sys
while number := os.read(0, 1):
    if number[0] == int(sys.argv[1]):
        print(sys.argv[2], file=sys.stderr, flush=True)
        break
    os.write(1, number)
"""


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether an error means that another process of the job ended or did not respond in time."""
    # NCCL reports this if it was called in a way that cannot work, for example with two processes on one GPU.
    if "invalid usage" in str(error) or "Duplicate GPU" in str(error):
        return False
    return isinstance(error, torch.distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


def describe_lost_process(timeout_s: float) -> str:
    """Return the message for the loss of another process.

    Args:
        timeout_s: time in seconds that a process waits for the others.
    """
    return (
        f"Another process of the job ended or did not respond for {timeout_s:g} s (run.timeout_s). "
        "Look for the error of that process, then run the same command again."
    )


def tell_others(error: InputError | RunError | OSError) -> Exception:
    """Tell the other processes that this one reports why it ends, and return the error that it should raise.

    If the error can only be this process's own, such as a full memory, its message names the process.
    """
    if not torch.distributed.is_initialized():
        return error
    # The other processes will fail too, because this one ends. They ask the group's store for the reason.
    with contextlib.suppress(Exception):
        _store().set(REPORTED, "1")
    if not isinstance(error, FetchError | MemoryShortageError):
        return error
    kind = type(error) if isinstance(error, CommandError | WrongContentError) else RunError
    named = kind(f"{describe_process(torch.distributed.get_rank())}: {error}")
    named.is_agreed = True
    return named


def is_reported() -> bool:
    """Return whether another process of the job has reported why it ended."""
    with contextlib.suppress(Exception):
        return _store().check([REPORTED])
    return False


def _store() -> Any:
    # torch has no public function that returns the store of the process group.
    store = torch.distributed.distributed_c10d._get_default_store()
    # If its machine is lost, the store does not respond.
    store.set_timeout(STORE_TIMEOUT)
    return store


@contextmanager
def explain_abort(message: str) -> Iterator[None]:
    """Print a message if this process is aborted inside the `with` block.

    A thread of NCCL notices that another process is lost while the main thread waits for the GPU, and aborts this
    process. No Python code runs then. However, the interpreter's handler, which is written in C, first writes the
    number of the signal into a pipe. A small process waits at the other end of the pipe and prints the message.

    In a thread other than the main one, this function does nothing, because Python sets handlers only in the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listening, writing = os.pipe()
    os.set_blocking(writing, False)
    # In a session of its own, the watcher does not receive a terminal's signals. It ends when the pipe is closed.
    command = [sys.executable, "-I", "-S", "-c", WATCHER, str(int(signal.SIGABRT)), message]
    previous = signal.set_wakeup_fd(-1)
    onward = subprocess.DEVNULL if previous == -1 else previous
    watcher = subprocess.Popen(command, stdin=listening, stdout=onward, start_new_session=True)
    os.close(listening)
    handler = signal.signal(signal.SIGABRT, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        signal.signal(signal.SIGABRT, handler)
        os.close(writing)
        watcher.wait()
