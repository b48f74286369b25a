"""Strips of several scans share batches; no scan gets another scan's values or waits forever."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.scans.restoration import restore_volume
from upfield.export.service.replicas.strips import MAX_STRIPS, RestoredStrip, Strip, StripBatcher, restore_strips

BATCH = 4


def test_a_strips_values_do_not_depend_on_other_strips(tiny_model: Path) -> None:
    restorer = OnnxRestorer(tiny_model, "cpu", 1)
    rng = np.random.default_rng(0)
    volumes = [rng.random((count, 20, 24), np.float32) for count in (11, 5, 1)]
    alone = [restore_volume(volume, restorer, BATCH) for volume in volumes]
    strips = [Strip(str(number), volume[:, None]) for number, volume in enumerate(volumes)]
    together = restore_strips(restorer, strips, BATCH)
    for restored, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(restored.high[:, 0], expected)
    batches = [batch for restored in together for batch in restored.batches]
    assert [(batch.num_slices, batch.num_scans) for batch in batches] == [(4, 1), (4, 1), (4, 2), (4, 1), (1, 1)]


class GatedModel:
    """A model that waits for its gate, then returns its input or fails."""

    context, normalisation = 0, ""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.failing: int | None = None
        """Value of the slices that make the model fail."""

    def restore(self, low: np.ndarray) -> np.ndarray:
        assert self.gate.wait(60)
        self.calls.append(low.shape)
        if (low == self.failing).any():
            raise ValueError("no luck")
        return low


def strip(owner: str, count: int, rows: int = 2) -> Strip:
    return Strip(owner, np.full((count, 1, rows, 2), float(ord(owner)), np.float32))


async def waiting(batcher: StripBatcher, strips: list[Strip]) -> list[asyncio.Task[RestoredStrip]]:
    """Submit strips one after the other until all of them wait."""
    tasks = [asyncio.create_task(batcher.restore(one)) for one in strips]
    for _ in range(len(strips) + 2):
        await asyncio.sleep(0)
    return tasks


def run_held(work: Callable[[GatedModel, StripBatcher], Awaitable[None]]) -> GatedModel:
    """Run `work` with a batcher whose model is busy with a first strip."""
    model = GatedModel()

    async def run() -> None:
        batcher = StripBatcher(model, BATCH)
        first = await waiting(batcher, [strip("a", 3)])
        try:
            await work(model, batcher)
        finally:
            model.gate.set()
        await asyncio.wait(first)

    asyncio.run(asyncio.wait_for(run(), 60))
    return model


def test_strips_that_arrive_during_a_call_share_the_next_one() -> None:
    async def work(model: GatedModel, batcher: StripBatcher) -> None:
        strips = [strip("b", 1), strip("c", 3), strip("d", 2, rows=3), strip("e", 2), strip("b", 2), strip("c", 1)]
        tasks = await waiting(batcher, strips)
        model.gate.set()
        for task, one in zip(tasks, strips, strict=True):
            np.testing.assert_array_equal((await task).high, one.low)
        batches = [batch for task in tasks for batch in task.result().batches]
        assert [(batch.num_slices, batch.num_scans) for batch in batches] == [(4, 2), (4, 2), (2, 1), (1, 1)]

    # The first strip alone; then four strips of one shape; then the strip of another shape; then the last strip.
    assert [shape[0] for shape in run_held(work).calls] == [3, 4, 4, 2, 1]
    assert MAX_STRIPS == 4


def test_a_cancelled_strip_is_not_restored_and_the_others_are() -> None:
    async def work(model: GatedModel, batcher: StripBatcher) -> None:
        tasks = await waiting(batcher, [strip("b", 4), strip("c", 4)])
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        model.gate.set()
        assert (await tasks[1]).high[0, 0, 0, 0] == ord("c")

    assert [shape[0] for shape in run_held(work).calls] == [3, 4]


def test_a_strip_that_fails_does_not_fail_those_that_share_its_call() -> None:
    async def work(model: GatedModel, batcher: StripBatcher) -> None:
        model.failing = ord("b")
        failed, *others = await waiting(batcher, [strip("b", 4), strip("c", 4), strip("d", 1)])
        model.gate.set()
        with pytest.raises(ValueError, match="no luck"):
            await failed
        assert [(await other).high[0, 0, 0, 0] for other in others] == [ord("c"), ord("d")]
        assert (await batcher.restore(strip("e", 1))).high.shape == (1, 1, 2, 2)

    run_held(work)
