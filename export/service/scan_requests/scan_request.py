"""The state of a scan request, from the upload to the response."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


# Compared by identity, because two requests may have equal progress.
@dataclass(eq=False)
class RequestProgress:
    """The step that a request is in, and its count of restored slices."""

    state: str = "receiving"
    """Current step: `receiving`, `waiting`, `reading`, `restoring` or `writing`."""
    slices_done: int = 0
    """Slices restored so far."""
    num_slices: int = 0
    """All slices of the scan; 0 until the scan has been read."""


@dataclass(frozen=True)
class EnhancedFiles:
    """The result of a scan: open files that are already unlinked, so that none is left behind."""

    enhanced: BinaryIO
    """`.nii.gz`, identical to the file that `upfield enhance` writes."""
    before: BinaryIO | None = None
    """The scan interpolated to the same voxels, `.nii.gz` in 256 grey levels, if the client asked for it."""
    notes: tuple[str, ...] = ()
    """Warnings about doubtful values in the scan's header, one sentence each."""


@dataclass(eq=False)
class ScanRequest:
    """A client's scan. Every step reads the fields that earlier steps have set."""

    id: str
    """32 hexadecimal digits. Clients ask for progress with this id, and strips carry it to tell scans apart."""
    log_id: str
    """`X-Request-Id` of the response, which is also written in the log."""
    wants_before: bool
    """Whether the client asked for the interpolated scan as well."""
    deadline_s: float
    """Time by which the scan must be enhanced, on the event loop's clock."""
    folder: Path
    """Folder for this request's files only, removed once the enhanced files are open or the request has failed."""
    name: str = ""
    """The client's name for the file, without harmful characters; empty if the client sent none."""
    contrast: str | None = None
    """Contrast that the client states."""
    path: Path = field(init=False)
    """Path of the upload; set once the scan has been received."""
    progress: RequestProgress = field(default_factory=RequestProgress)
    """Current step and number of restored slices; every step updates them."""
    resources: ExitStack = field(default_factory=ExitStack)
    """The place in the queue and the open files. They are released once the response has been sent or the
    request has failed."""

    @property
    def label(self) -> str:
        """Name of the scan in messages."""
        return self.name or "scan"

    def release(self) -> None:
        """Release the place in the queue and close the files."""
        self.resources.close()
