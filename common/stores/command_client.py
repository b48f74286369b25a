"""A folder at an address, from which a command that the user names downloads files. It can do nothing else."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from upfield.common.addresses import format_address
from upfield.common.errors import InputError
from upfield.common.stores.byte_ranges import RangeRequest
from upfield.common.stores.transfer import POLL_S, Transfer

URL = "{url}"
STREAM_BYTES = 1 << 20


class CommandFailedError(Exception):
    """A command ended with an exit code other than 0. Another try may succeed."""


class CommandClient:
    """A folder at an address. Each file is the standard output of one process, which is started without a shell."""

    root = ""
    takes_threads = True

    def __init__(self, address: str, command: str) -> None:
        """Split the command into words.

        Args:
            address: address of the folder, without a slash at its end.
            command: program and arguments, of which at least one contains `{url}`.

        Raises:
            InputError: there is no such program on this machine.
        """
        self.address = address
        self.words = shlex.split(command)
        if not shutil.which(self.words[0]):
            raise InputError(
                f"{format_address(address)}: the command that downloads its files, {command}, needs the program "
                f"{self.words[0]}, which was not found. Install the program, or name it with its path."
            )

    def fetch(self, name: str, path: Path, transfer: Transfer) -> None:
        """Copy an object to a new file.

        Raises:
            CommandFailedError: the command failed.
        """
        words = [word.replace(URL, f"{self.address}/{name}") for word in self.words]
        with path.open("wb") as file, tempfile.TemporaryFile() as errors:
            # Signals to this process are no reason for the command to end, so it has a session of its own.
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=errors, start_new_session=True
            )
            try:
                transfer.wait(lambda: _has_ended(process, file.fileno(), transfer))
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if process.returncode:
                raise CommandFailedError(_describe_failure(process.returncode, errors.fileno()))

    def stream(self, name: str, transfer: Transfer) -> Iterator[bytes]:
        """Yield the bytes of an object in order, once the command has ended.

        Raises:
            CommandFailedError: the command failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "object"
            self.fetch(name, path, transfer)
            with path.open("rb") as file:
                while chunk := file.read(STREAM_BYTES):
                    yield chunk

    def read(self, name: str) -> bytes:
        """Read a small object.

        Raises:
            CommandFailedError: the command failed.
        """
        return b"".join(self.stream(name, Transfer(None)))

    def fetch_ranges(self, name: str, requests: Sequence[RangeRequest], transfer: Transfer) -> list[bytes]:
        """Refuse to read parts of an object."""
        self._refuse("read parts of files")

    def list_sizes(self) -> dict[str, int]:
        """Refuse to list the folder."""
        self._refuse("list a folder")

    def size(self, name: str) -> int:
        """Refuse to look up a size."""
        self._refuse("look up sizes")

    def write(self, name: str, data: bytes) -> None:
        """Refuse to write an object."""
        self._refuse("write files")

    def remove(self, name: str) -> None:
        """Refuse to remove an object."""
        self._refuse("remove files")

    def send(self, path: Path, name: str) -> None:
        """Refuse to send a file."""
        self._refuse("send files")

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"{format_address(self.address)}: the command {shlex.join(self.words)} downloads whole files and cannot "
            f"{what}. Leave the command out."
        )


def _has_ended(process: "subprocess.Popen[bytes]", output: int, transfer: Transfer) -> bool:
    """Wait a moment for a process that writes to the descriptor `output`, and count the bytes that have arrived."""
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        transfer.add(os.fstat(output).st_size - transfer.num_bytes)
        return False
    return True


def _describe_failure(code: int, errors: int) -> str:
    """Describe how a command ended, and the last line that it wrote to its standard error, an open file."""
    end = os.fstat(errors).st_size
    lines = os.pread(errors, 4096, max(0, end - 4096)).decode(errors="replace").strip().splitlines()
    ending = f"it ended with exit code {code}" if code > 0 else f"{signal.Signals(-code).name} ended it"
    return f"{ending}, and its last message was: {lines[-1].strip()}" if lines else f"{ending} without a message"
