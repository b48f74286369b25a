"""One scan through the service: read, restored slice by slice beside other scans, written."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from upfield.export.configuration import ServeConfig
from upfield.export.scans.restoration import slice_batches
from upfield.export.scans.scan import ModelInput, finish, prepare, write_enhanced
from upfield.export.service.limits import RequestProgress, check_scan
from upfield.imaging.nifti_writer import write_volume

# Strips of one scan that are on their way at the same time: enough to fill a replica's batches, few enough to be fair.
WINDOW = 4

T = TypeVar("T")


class Engine(Protocol):
    """Whatever restores strips of slices of several scans at once."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the one restored."""
        ...

    @property
    def normalisation(self) -> str:
        """How intensities must be brought to [0, 1]."""
        ...

    @property
    def batch_size(self) -> int:
        """Slices of a strip, at most."""
        ...

    async def restore(self, owner: str, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map a strip `(N, 1 + 2*context, H, W)` in [0, 1] of the scan `owner` to `(N, 1, H, W)` in [0, 1]."""
        ...

    async def is_ready(self) -> bool:
        """Tell whether a strip would be restored now."""
        ...


@dataclass(frozen=True)
class Answer:
    """What a scan has become."""

    enhanced: BinaryIO
    """`.nii.gz`, byte for byte what `upfield enhance` writes."""
    before: BinaryIO | None = None
    """The scan interpolated to the same voxels, `.nii.gz`, in 256 greys, where it was asked for."""
    notes: tuple[str, ...] = ()
    """What is doubtful about the scan, in words."""


async def enhance_upload(
    upload: Path,
    name: str,
    with_before: bool,
    engine: Engine,
    config: ServeConfig,
    executor: Executor,
    owner: str,
    progress: RequestProgress,
) -> Answer:
    """Enhance an uploaded scan.

    Args:
        upload: the scan, alone in a folder that is removed afterwards.
        name: what to call it in messages.
        with_before: whether its cubic interpolation to the same grid is wanted too.
        engine: restores slices.
        config: the limits.
        executor: for what would hold up other requests.
        owner: tells this request from others.
        progress: kept up to date.

    Returns:
        The files, open, whose names are gone already, so that nothing is left behind.

    Raises:
        VolumeError: the scan cannot be used.
        RefusedError: it is too large.
    """
    progress.state = "reading"
    prepared = await in_thread(executor, _read, upload, name, engine.normalisation, config)
    progress.state, progress.num_slices = "restoring", len(prepared.low)
    restored = await restore_scan(prepared.low, engine, owner, progress)
    progress.state = "writing"
    files = await in_thread(executor, _write, prepared, restored, upload.parent, with_before)
    return Answer(*files, notes=prepared.notes)


def _read(upload: Path, name: str, normalisation: str, config: ServeConfig) -> ModelInput:
    check_scan(upload, name, config)
    prepared = prepare(upload, normalisation, name)
    upload.unlink()
    return prepared


def _write(prepared: ModelInput, restored: NDArray[np.float32], folder: Path, with_before: bool) -> list[BinaryIO]:
    paths = [folder / "enhanced.nii.gz"]
    write_enhanced(prepared, restored, paths[0])
    if with_before:
        paths.append(folder / "before.nii.gz")
        # A screen shows no more than 256 greys, and these take a third of the bytes.
        greys = np.float32(1 / 255) * np.rint(prepared.low * np.float32(255))
        write_volume(finish(prepared, greys), paths[1])
    files: list[BinaryIO] = [path.open("rb") for path in paths]
    for path in paths:
        path.unlink()
    return files


async def restore_scan(
    low: NDArray[np.float32], engine: Engine, owner: str, progress: RequestProgress
) -> NDArray[np.float32]:
    """Restore a volume slice by slice along its sagittal axis, a few strips of slices at a time.

    Args:
        low: `(X, Y, Z)` in [0, 1].
        engine: restores strips.
        owner: tells this scan from others.
        progress: counts the slices done.

    Returns:
        `(X, Y, Z)` float32 in [0, 1].
    """
    restored = np.empty_like(low)
    # The workers share the iterator, so that each takes the next strip.
    strips = slice_batches(low, engine.context, engine.batch_size)

    async def restore_strips() -> None:
        for rows, strip in strips:
            restored[rows] = (await engine.restore(owner, strip))[:, 0]
            progress.slices_done += len(strip)

    workers = [asyncio.create_task(restore_strips()) for _ in range(WINDOW)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    return restored


async def in_thread(executor: Executor, function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in a thread; whoever gives up waiting for it still waits until it has let go of its files."""
    begun = executor.submit(function, *arguments)
    work = asyncio.wrap_future(begun)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # What still waits for a thread is not begun at all.
        begun.cancel()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()
        raise
