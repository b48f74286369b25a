"""Print an error of a job of several processes once, and name the processes that met it, if not all did.

The processes of one machine send their errors to the first of them that fails. They use a socket without a file, so
that nothing remains if one of them is killed. On systems other than Linux, each process prints its own error.
"""

import contextlib
import json
import os
import socket
import sys
import time

# Processes that run the same command fail within seconds of each other.
WAIT_S = 10.0
MOST_BYTES = 2**16


def print_error(prefix: str, message: str) -> None:
    """Print an error of this process on stderr, or let another process of this machine print it.

    Args:
        prefix: words before the message, such as `upfield train: error: `.
        message: one line.
    """
    count, rank = _number("LOCAL_WORLD_SIZE"), _number("RANK")
    if _number("WORLD_SIZE") < 2 or count < 2 or not sys.platform.startswith("linux"):
        print(f"{prefix}{message}", file=sys.stderr, flush=True)
        return
    name = f"\0upfield-{os.getuid()}-{os.environ.get('MASTER_ADDR')}-{os.environ.get('MASTER_PORT')}"
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(name)
        except OSError:
            if not _send(name, rank, message):
                _print_all(prefix, {message: [rank]}, count)
            return
        listener.listen(count)
        _collect(listener, prefix, {message: [rank]}, count)


def describe_process(rank: int) -> str:
    """Return words for a process of this job, such as `process 1 of 4`."""
    return f"process {rank} of {_number('WORLD_SIZE')}"


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def _send(name: str, rank: int, message: str) -> bool:
    """Send an error to the process that collects them, and wait until it has printed all.

    Returns:
        Whether that process is still there.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S + 5)
        connection.connect(name)
        connection.sendall(json.dumps([rank, message]).encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return True
    return False


def _collect(listener: socket.socket, prefix: str, errors: dict[str, list[int]], count: int) -> None:
    """Receive the errors of the other processes of this machine, and print all.

    Args:
        listener: socket that the other processes connect to; each waits until its connection is closed.
        prefix: words before each message.
        errors: message -> ranks that met it, so far.
        count: number of processes on this machine.
    """
    deadline = time.monotonic() + WAIT_S
    with contextlib.ExitStack() as connections:
        try:
            while sum(map(len, errors.values())) < count and (left := deadline - time.monotonic()) > 0:
                listener.settimeout(left)
                connection, _ = listener.accept()
                connections.enter_context(connection)
                connection.settimeout(1)
                with contextlib.suppress(OSError, ValueError):
                    rank, message = json.loads(connection.recv(MOST_BYTES, socket.MSG_WAITALL))
                    errors.setdefault(str(message), []).append(int(rank))
        # The launcher sends SIGTERM to the other processes when one of them has ended.
        except (TimeoutError, KeyboardInterrupt):
            pass
        _print_all(prefix, errors, count)


def _print_all(prefix: str, errors: dict[str, list[int]], count: int) -> None:
    for message, ranks in errors.items():
        names = ", ".join(map(describe_process, sorted(ranks)))
        text = message if len(ranks) == count or message.startswith(names) else f"{names}: {message}"
        print(f"{prefix}{text}", file=sys.stderr, flush=True)
