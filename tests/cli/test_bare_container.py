"""Every command works as an arbitrary user without a home folder, on a read-only root, without a network."""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from container import bare, why_not

TIMEOUT_S = 900
SMALL = ("--model.preset", "tiny", "--run.precision", "no", "--run.max_steps", "2", "--run.trackers", "[]")
SWEEP = """
train:
  data: {shards: shards, batch_size: 4}
  model: {preset: tiny}
  run: {max_steps: 2, precision: 'no', trackers: [], pictures: 0}
space: {optim.lr: [1.0e-3, 1.0e-4]}
max_concurrent_trials: 1
"""
# Starts a service, sends it a scan, and stops it.
SERVE = """
import signal, subprocess, sys, time, urllib.request
service = subprocess.Popen([sys.executable, "-m", "upfield.cli.main", "serve", "model.onnx", "--port", "18777"])
address = "http://127.0.0.1:18777"
for _ in range(600):
    try:
        urllib.request.urlopen(f"{address}/health").read()
        break
    except OSError:
        assert service.poll() is None
        time.sleep(0.5)
scan = open(sys.argv[1], "rb").read()
request = urllib.request.Request(f"{address}/enhance", scan, {"Content-Type": "application/octet-stream"})
answer = urllib.request.urlopen(request).read()
service.send_signal(signal.SIGTERM)
assert service.wait() == 0
assert len(answer) > 352, len(answer)
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["C", "C.UTF-8"])
def run(request: pytest.FixtureRequest, short_folder: Path) -> Run:
    """Run `upfield` or a program in a bare container, whose only writable folder is `short_folder`."""
    if reason := why_not(short_folder):
        pytest.skip(reason)

    def run(*command: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        start = ["-m", "upfield.cli.main"] if command[0] != "-c" else []
        line = bare(short_folder, [sys.executable, *start, *map(str, command)], LC_ALL=request.param)
        done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == code, f"{command}: {done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "elemetry" not in done.stderr
        assert "atplotlib" not in done.stderr
        return done

    return run


@pytest.mark.slow
def test_all_commands_work_with_one_writable_folder(run: Run, tiny_cohort: Path, short_folder: Path) -> None:
    shutil.copytree(tiny_cohort, short_folder / "cohort")
    scan = next((short_folder / "cohort" / "IXI-T1").iterdir()).relative_to(short_folder)
    run("phantom", "phantoms", "--subjects", 4)
    run("shard", "--config", "cohort/cohorts.yaml", "--out", "shards", "--jobs", 2)
    run("shard", "--config", "cohort/cohorts.yaml", "--out", "others", "--executor", "ray")
    assert (short_folder / "shards/manifest.json").read_bytes() == (short_folder / "others/manifest.json").read_bytes()
    run("verify", "shards")
    run("preview", "shards", "--out", "grid.png")
    run("train", "--data.shards", "shards", "--run.out", "run", *SMALL)
    run("train", "--data.shards", "shards", "--run.out", "of_two", *SMALL, "--processes", 2)
    run("evaluate", "run", "--shards", "shards", "--split", "test", "--out", "report")
    run("export", "run", "--out", "model.onnx")
    run("enhance", "model.onnx", scan, "--out", "enhanced.nii.gz")
    (short_folder / "sweep.yaml").write_text(SWEEP)
    run("tune", "--config", "sweep.yaml", "--out", "sweep")
    run("-c", SERVE, scan)


@pytest.mark.slow
def test_remote_shards_need_a_named_cache_and_no_home(run: Run, tiny_shards: Path, short_folder: Path) -> None:
    # The container has a loopback device of its own, so the server runs inside.
    program = textwrap.dedent(f"""
        import functools, http.server, sys, threading
        from upfield.distributed.train import main
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory={str(tiny_shards)!r})
        handler.log_message = lambda *_: None
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.exit(main(["--data.shards", f"http://127.0.0.1:{{server.server_port}}", *sys.argv[1:]]))
    """)
    refused = run("-c", program, *SMALL, "--run.out", "run", code=2)
    assert "no cache folder for shards, because the user has no home folder. Set --data.cache_dir." in refused.stderr
    run("-c", program, *SMALL, "--run.out", "run", "--data.cache_dir", "cache")
    assert list((short_folder / "cache").glob("*.tar"))


@pytest.mark.slow
def test_a_set_for_a_store_needs_a_named_folder(run: Run, tiny_cohort: Path) -> None:
    refused = run("shard", "--config", tiny_cohort / "cohorts.yaml", "--out", "memory://set", code=2)
    assert "no home folder. Set XDG_CACHE_HOME to a folder that can be written." in refused.stderr
