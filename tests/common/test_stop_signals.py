"""Signals ask a process to stop; Ctrl-C says at once what happens, and the second one ends the process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from upfield.common.stop_signals import StopReason, StopRequest, stop_signals

# The main thread waits in C code, where Python calls no handlers, as in a backward pass or a collective call.
WAITING = """
import ctypes, sys
from upfield.common.stop_signals import stop_signals
with stop_signals(interrupt=True) as stop:
    print("ready", flush=True)
    ctypes.CDLL(None).poll(None, 0, 30_000)
    ctypes.CDLL(None).poll(None, 0, 30_000)
"""


def test_the_first_ctrl_c_is_answered_at_once_and_the_second_ends_the_process_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("Stopping before training starts. Ctrl-C again ends at once")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_a_request_that_cancels_waits(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    cancelled: list[int] = []
    with stop_signals(interrupt=True) as stop:
        stop.cancel = lambda: cancelled.append(1)
        assert stop.reason == StopReason.NONE
        os.kill(os.getpid(), number)
        until = time.monotonic() + 10
        while not cancelled and time.monotonic() < until:
            time.sleep(0.001)
        assert stop.reason == StopReason.SIGNAL
    assert cancelled == [1]
    assert signal.getsignal(number) == before
    assert ("Ctrl-C again" in capsys.readouterr().err) == (number == signal.SIGINT)


def test_without_interrupt_ctrl_c_interrupts_the_code() -> None:
    with stop_signals() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # in this thread, so that the error is raised here
    assert not stop.asked


def test_a_signal_counts_more_than_the_time() -> None:
    assert StopRequest(ends_at_s=time.monotonic() - 1).reason == StopReason.TIME
    assert StopRequest(ends_at_s=time.monotonic() + 99).reason == StopReason.NONE
    assert StopRequest(asked=True, ends_at_s=time.monotonic() - 1).reason == StopReason.SIGNAL
