"""At most three jobs run at once, every stage keeps their order, and an error in one job does not stop the others."""

import threading
import time

import pytest

from upfield.common.errors import InputError, OutputError, RunError
from upfield.export.scans.pipeline import Stages, run_pipeline

PATIENCE_S = 20.0


class Watched:
    """Stages that record what they do; jobs are numbers."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.ended: list[tuple[str, int]] = []
        self.reported: list[tuple[int, str | None]] = []
        self.stopped = False

    def read(self, job: int) -> int | None:
        self.begun.append(("read", job))
        if job % 5 == 3:
            raise InputError(f"{job} cannot be read")
        if job == 11:
            raise KeyError("a fault of the program")
        self.ended.append(("read", job))
        return None if job % 5 == 4 else job

    def restore(self, job: int, prepared: int) -> int:
        assert prepared == job
        self.begun.append(("restore", job))
        if job == 10:
            raise RunError("10 is not finite")
        time.sleep(0.02)
        self.ended.append(("restore", job))
        return job * 10

    def write(self, job: int, prepared: int, restored: int) -> None:
        assert (prepared, restored) == (job, job * 10)
        self.begun.append(("write", job))
        if job == 6:
            raise InputError("6 cannot be written")
        time.sleep(0.03)
        self.ended.append(("write", job))

    def stop(self) -> None:
        self.stopped = True

    def report(self, job: int, error: Exception | None) -> None:
        self.reported.append((job, str(error) if error else None))

    def run(self, num_jobs: int) -> None:
        run_pipeline(range(num_jobs), Stages(self.read, self.restore, self.write, self.stop), self.report)


def test_every_job_is_reported_once_with_its_own_error() -> None:
    watched = Watched()
    watched.run(13)
    reported = dict(watched.reported)
    assert len(watched.reported) == len(reported) == 13
    assert {job: error for job, error in reported.items() if error} == {
        3: "3 cannot be read",
        6: "6 cannot be written",
        8: "8 cannot be read",
        10: "10 is not finite",
        11: "'a fault of the program'",
    }
    assert [job for stage, job in watched.ended if stage == "write"] == [0, 1, 2, 5, 7, 12]
    assert not watched.stopped
    watched.run(0)


def test_at_most_one_job_is_ahead_and_one_behind() -> None:
    watched = Watched()
    held: list[int] = []
    alive = 0
    lock = threading.Lock()

    def read(job: int) -> int:
        nonlocal alive
        with lock:
            alive += 1
            held.append(alive)
        return job

    def write(job: int, prepared: int, restored: int) -> None:
        nonlocal alive
        time.sleep(0.03)
        with lock:
            alive -= 1

    run_pipeline(range(20), Stages(read, lambda job, _: job, write, watched.stop), watched.report)
    assert max(held) <= 3
    assert alive == 0


def test_the_three_stages_run_at_the_same_time() -> None:
    together = threading.Barrier(3)

    def wait(*_: object) -> int:
        together.wait(PATIENCE_S)
        return 1

    # Each of these waits for the other two: job 2 is read while 1 is restored and 0 is written.
    def read(job: int) -> int:
        return wait() if job == 2 else 1

    def restore(job: int, prepared: int) -> int:
        return wait() if job == 1 else 1

    def write(job: int, prepared: int, restored: int) -> None:
        if job == 0:
            wait()

    reported: list[int] = []
    run_pipeline(range(3), Stages(read, restore, write, lambda: None), lambda job, _: reported.append(job))
    assert reported == [0, 1, 2]


def test_work_ends_after_the_current_file_if_no_more_can_be_written() -> None:
    watched = Watched()

    def write(job: int, prepared: int, restored: int) -> None:
        if job == 2:
            raise OutputError("no disk")
        watched.write(job, prepared, restored)

    with pytest.raises(OutputError, match="no disk"):
        run_pipeline(range(12), Stages(watched.read, watched.restore, write, watched.stop), watched.report)
    assert watched.stopped
    assert [job for name, job in watched.ended if name == "write"] == [0, 1]
    assert ("read", 9) not in watched.begun
