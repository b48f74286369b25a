"""The processing of one admitted scan: check and prepare it, restore it strip by strip, and write the result."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import VolumeError
from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.card import ModelCard
from upfield.export.scans.restoration import slice_batches
from upfield.export.scans.scan import ModelInput, finish, prepare_volume, write_enhanced
from upfield.export.scans.scan_claim import ScanClaim
from upfield.export.service.scan_requests.scan_limits import LimitedContent, check_size
from upfield.export.service.scan_requests.scan_request import EnhancedFiles, ScanRequest
from upfield.imaging.compressed_files import is_compressed, open_content
from upfield.imaging.header import UNREADABLE, unreadable
from upfield.imaging.nifti_writer import write_volume
from upfield.imaging.volume_file import VolumeFile

# Strips of one scan that are restored at the same time. They fill a replica's batches and leave room for other scans.
STRIPS_IN_FLIGHT = 4

T = TypeVar("T")


class Engine(Protocol):
    """Restores strips of slices from several scans concurrently."""

    @property
    def card(self) -> ModelCard:
        """Metadata of the model."""
        ...

    @property
    def batch_size(self) -> int:
        """Largest number of slices in a strip."""
        ...

    async def restore(self, owner: str, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Restore a strip of the scan `owner`, `(N, 1 + 2*context, H, W)` in [0, 1], to `(N, 1, H, W)` in [0, 1]."""
        ...

    async def is_ready(self) -> bool:
        """Return whether a replica is ready to restore strips."""
        ...


async def enhance_upload(
    request: ScanRequest, engine: Engine, config: ServeConfig, executor: Executor
) -> EnhancedFiles:
    """Enhance an uploaded scan.

    Args:
        request: the request, whose `path` is the upload. The upload is removed as soon as it has been read.
        engine: engine that restores the slices.
        config: the service's configuration, which holds the limits.
        executor: threads for work that would delay other requests on the event loop.

    Raises:
        VolumeError: the scan cannot be used.
        RefusedError: the scan is too large.
    """
    request.progress.state = "reading"
    prepared = await in_thread(executor, prepare_upload, request, engine.card, config)
    request.progress.state, request.progress.num_slices = "restoring", len(prepared.low)
    restored = await restore_scan(prepared.low, engine, request)
    request.progress.state = "writing"
    return await in_thread(executor, write_files, request, prepared, restored)


def prepare_upload(request: ScanRequest, card: ModelCard, config: ServeConfig) -> ModelInput:
    """Read an upload in one pass, check its size while reading, and prepare it for the model.

    Raises:
        VolumeError: the scan cannot be used. `upfield enhance` reports the same messages.
        RefusedError: the scan has too many voxels or bytes (413).
    """
    path, label = request.path, request.label
    try:
        with open_content(path) as content:
            limited = LimitedContent(content, label, config.max_decompressed_bytes)
            file = VolumeFile(path, limited if is_compressed(path) else content)
            check_size(file.header, label, config.max_voxels)
            scan = file.read_volume()
    except VolumeError as error:
        raise VolumeError(label, error.problem) from error
    except UNREADABLE as error:
        raise VolumeError(label, unreadable(path, error).problem) from error
    path.unlink()
    claim = ScanClaim(request.name, stated=request.contrast, option="contrast=")
    return prepare_volume(scan, file.header, card, label, claim)


async def restore_scan(low: NDArray[np.float32], engine: Engine, request: ScanRequest) -> NDArray[np.float32]:
    """Restore the sagittal slices of a volume, a few strips at a time.

    Args:
        low: `(X, Y, Z)` in [0, 1].
        engine: engine that restores the strips.
        request: the request, whose progress counts the restored slices.

    Returns:
        `(X, Y, Z)` float32 in [0, 1].
    """
    restored = np.empty_like(low)
    # The workers share the iterator, so that each takes the next strip.
    strips = slice_batches(low, engine.card.context, engine.batch_size)

    async def restore_strips() -> None:
        for rows, strip in strips:
            restored[rows] = (await engine.restore(request.id, strip))[:, 0]
            request.progress.slices_done += len(strip)

    workers = [asyncio.create_task(restore_strips()) for _ in range(STRIPS_IN_FLIGHT)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    return restored


def write_files(request: ScanRequest, prepared: ModelInput, restored: NDArray[np.float32]) -> EnhancedFiles:
    """Write the enhanced scan and, if the client asked for it, the interpolated scan; then open and unlink the files.

    Args:
        request: the request, to whose folder the files are written.
        prepared: the scan as the model's input.
        restored: `(X, Y, Z)` float32 in [0, 1], the model's output.
    """
    enhanced = request.folder / "enhanced.nii.gz"
    write_enhanced(prepared, restored, enhanced)
    before = None
    if request.wants_before:
        before = request.folder / "before.nii.gz"
        # A screen shows at most 256 grey levels, and a file with 256 levels has a third of the size.
        greys = np.float32(1 / 255) * np.rint(prepared.low * np.float32(255))
        write_volume(finish(prepared, greys), before)
    return EnhancedFiles(_open_nameless(enhanced), before and _open_nameless(before), prepared.notes)


def _open_nameless(path: Path) -> BinaryIO:
    file = path.open("rb")
    path.unlink()
    return file


async def in_thread(executor: Executor, function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in a thread. If the caller is cancelled, wait until the thread no longer uses its files."""
    submitted = executor.submit(function, *arguments)
    work = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # A call that is still waiting for a thread never starts.
        submitted.cancel()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()
        raise
