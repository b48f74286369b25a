"""Run checks, each in its own process, and write what each reported as soon as it ends."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from acceptance.plan import TOTAL_S, Check
from acceptance.report import Settings
from acceptance.results import Result, format_table
from upfield.common.cores import most_threads
from upfield.common.tasks import end_with_parent

PROGRAM = Path(__file__).resolve().parents[1] / "gpu_acceptance.py"
ROOT = PROGRAM.parents[1]
# Files in the folder of the results. They are few, and written while the checks run, so that a run that is cut off
# leaves everything behind that it has found so far.
RESULTS, LOG, TABLE = "results.jsonl", "log.txt", "table.txt"
LEAST_S = 5.0  # A check that would get less time than this is not started.


def run_checks(
    checks: Sequence[Check], out: Path, device: str, shards: Path, total_s: float | None, against: str = ""
) -> int:
    """Run checks in order, print a line after each and the table at the end, and return the exit code.

    Args:
        checks: what to run.
        out: folder for the results; results of an earlier run of these checks are replaced.
        device: `cuda` or `cpu`.
        shards: shard set to train on.
        total_s: seconds for all checks together; None means the default of the device.
        against: the published network, as FILE.py:Class.

    Raises:
        SystemExit: the folder for the results cannot be written.
    """
    try:
        earlier = open_results(out, checks, device)
    except OSError as error:
        sys.exit(f"{out}: cannot be written ({error.strerror}). Choose another --out.")
    begun = time.monotonic()
    deadline = begun + (TOTAL_S[device] if total_s is None else total_s)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, (out / LOG).open("ab", buffering=0) as log:
        for check in checks:
            limit_s = min(check.limit_s(device), deadline - time.monotonic())
            if limit_s < min(LEAST_S, check.limit_s(device)):
                result = Result(check.number, check.title, "not run", 0.0, max(limit_s, 0.0), device)
            else:
                result = run_one(check, Path(folder), log, device, shards.resolve(), limit_s, against)
            results.append(result)
            with (out / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(result.to_tree()) + "\n")
            print(result.summary(), flush=True)
    everything = sorted([*earlier, *results], key=lambda result: result.check)
    table = format_table(everything, device, time.monotonic() - begun)
    (out / TABLE).write_text(table, encoding="utf-8")
    print(f"\n{table}", flush=True)
    good = ("passed", "needs a GPU") if device == "cpu" else ("passed",)
    return 0 if all(result.status in good for result in results) else 1


def open_results(out: Path, checks: Sequence[Check], device: str) -> list[Result]:
    """Prepare the folder of the results, and return what an earlier run found about other checks on this device.

    Raises:
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / RESULTS
    found = [Result(**json.loads(line)) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    repeated = {check.number for check in checks}
    earlier = [result for result in found if result.device == device and result.check not in repeated]
    if not earlier:
        (out / LOG).unlink(missing_ok=True)
    (out / TABLE).unlink(missing_ok=True)
    file.write_text("".join(json.dumps(result.to_tree()) + "\n" for result in earlier), encoding="utf-8")
    return earlier


def refuse_absent_gpu(device: str) -> None:
    """Check that PyTorch sees a GPU if the checks are to run on one.

    Raises:
        SystemExit: there is no GPU.
    """
    import torch  # It takes seconds, and wrong arguments are refused before.

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device: PyTorch sees no GPU here. Install a CUDA build of torch, or choose --device cpu.")


def run_one(
    check: Check, folder: Path, log: BinaryIO, device: str, shards: Path, limit_s: float, against: str
) -> Result:
    """Run one check in a process of its own, and return what it reported.

    Args:
        check: what to run.
        folder: folder for temporary files of all checks.
        log: receives everything that the check prints.
        device: `cuda` or `cpu`.
        shards: shard set to train on.
        limit_s: seconds after which the process and all its descendants are killed.
        against: the published network, as FILE.py:Class.
    """
    log.write(f"\n======== {check.number} {check.title}, at most {limit_s:.0f} s\n".encode())
    records = folder / f"{check.number}.jsonl"
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as work:
        settings = Settings(device, str(shards), work, str(records), limit_s, against)
        command = [sys.executable, str(PROGRAM), "--check", check.module, "--settings", settings.to_json()]
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment(device, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            kill_with_descendants(process)
        seconds = time.monotonic() - begun
    result = Result.from_records(check.number, check.title, seconds, limit_s, device, read_records(records))
    if timed_out:
        return result.ended("timed out", f"no end after {limit_s:.0f} s")
    code = process.returncode
    if code < 0:
        return result.ended("crashed", f"killed by {signal.Signals(-code).name}")
    if code or not result.done:
        return result.ended("crashed", f"ended with exit code {code} before its end")
    return result


def environment(device: str, folder: Path) -> dict[str, str]:
    """Return the environment of a check's process: links to the packages, no network, and a shared compile cache."""
    paths = [str(ROOT / "typings"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        # The ranks are all on this machine, which may have no network and no name.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    if device == "cpu":
        variables |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "TRITON_INTERPRET": "1"}
        # Runs that must agree bit for bit need one number of threads, whatever the load.
        variables |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(most_threads()))}
    return os.environ | variables


def kill_with_descendants(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a process and of the processes that it started, in sessions of their own too."""
    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        descendants = []
    for each in [process, *descendants]:
        try:
            each.kill()
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    process.wait()


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a check's report."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
