"""Admission: scans wait in the order of their arrival."""

import asyncio

from upfield.export.service.scan_requests.admission import AdmissionQueue
from upfield.export.service.scan_requests.scan_request import RequestProgress


def test_each_waiting_scan_has_its_own_position() -> None:
    async def run() -> None:
        queue, scans = AdmissionQueue(1, 3), [RequestProgress() for _ in range(4)]
        ends = asyncio.Event()

        async def process(progress: RequestProgress) -> None:
            async with queue.turn(progress):
                await ends.wait()

        tasks = [asyncio.create_task(process(progress)) for progress in scans]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait(tasks[2:3])
        assert [queue.position(progress) for progress in scans] == [0, 1, 0, 2]
        ends.set()
        await asyncio.wait(tasks)

    asyncio.run(run())
