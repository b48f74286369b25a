"""A shortage of memory on a GPU or on the machine: how to recognise it, and a message that names the remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from upfield.common.errors import MemoryShortageError, RunError

# Parts of the messages of PyTorch's allocators for CPUs and GPUs, of cuBLAS and of cuDNN.
SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
AMOUNT = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


@contextmanager
def explain_memory_shortage(task: str, remedy: str) -> Iterator[None]:
    """Replace an error about memory inside the `with` block by one that names the remedy.

    Other processes of the job may have enough memory, so each process reports this error itself.

    Args:
        task: what the program was doing.
        remedy: what the user can do.

    Raises:
        MemoryShortageError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RunError) or not is_memory_shortage(error):
            raise
        amount = AMOUNT.search(str(error))
        requested = f" ({amount[1]} more were requested)" if amount else ""
        raise MemoryShortageError(f"memory ran out while {task}{requested}. {remedy}") from error


def is_memory_shortage(error: MemoryError | RuntimeError) -> bool:
    """Return whether an error means that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)
