"""The request that a scan travels with, from its upload to its answer."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


# Two requests with equal progress are still two.
@dataclass(eq=False)
class RequestProgress:
    """How far a request is."""

    state: str = "receiving"
    """`receiving`, `waiting`, `reading`, `restoring` or `writing`."""
    slices_done: int = 0
    """Slices restored."""
    num_slices: int = 0
    """Slices of the scan, known once the scan has been read."""


@dataclass(frozen=True)
class EnhancedFiles:
    """What a scan has become: open files whose names are gone already, so that nothing is left behind."""

    enhanced: BinaryIO
    """`.nii.gz`, byte for byte what `upfield enhance` writes."""
    before: BinaryIO | None = None
    """The scan interpolated to the same voxels, `.nii.gz` in 256 grey levels, if the client asked for it."""
    notes: tuple[str, ...] = ()
    """What is doubtful about the scan, one sentence each."""


@dataclass(eq=False)
class ScanRequest:
    """One client's scan. Every step reads from it what earlier steps have set."""

    id: str
    """32 hexadecimal digits. The client asks for progress with them, and they tell this scan's strips from others'."""
    log_id: str
    """`X-Request-Id` of the answer, which finds the request in the log."""
    wants_before: bool
    """Whether the client wants the interpolated scan beside the enhanced one."""
    deadline_s: float
    """When the answer must be ready, by the event loop's clock."""
    folder: Path
    """Holds this request's files alone; removed when the enhanced files are open, or the request has failed."""
    name: str = ""
    """What the client calls its file, cleaned; empty if it did not say."""
    path: Path = field(init=False)
    """The upload; set once the scan has been received."""
    progress: RequestProgress = field(default_factory=RequestProgress)
    """Kept up to date by every step."""
    resources: ExitStack = field(default_factory=ExitStack)
    """The place among the admitted scans, and open files; released once the client has the answer, or has none."""

    @property
    def label(self) -> str:
        """How messages name the scan."""
        return self.name or "scan"

    def release(self) -> None:
        """Give up the place and close the files."""
        self.resources.close()
