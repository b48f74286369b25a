"""A build that is killed at any moment is finished by the same command, to the same bytes."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from upfield.sharding.shard import main
from upfield.sharding.shardset import shard_writer
from upfield.sharding.verify import main as verify

SCRIPT = Path(__file__).with_name("crash.py")
ONE_THREAD = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
NOBODY = 65534


def arguments(cohort, out, *more):
    return ["--config", str(cohort / "cohorts.yaml"), "--out", str(out), "--jobs", "1", *map(str, more)]


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def enumerate_kills(cohort, folder, stride):
    command = [sys.executable, "-W", "ignore", SCRIPT, cohort / "cohorts.yaml", folder, stride]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_build_killed_at_many_disk_writes_is_finished_to_the_same_bytes(tiny_cohort, tmp_path):
    assert enumerate_kills(tiny_cohort, tmp_path, 17) >= 4


@pytest.mark.slow
def test_a_build_killed_at_each_disk_write_is_finished_to_the_same_bytes(tiny_cohort, tmp_path):
    assert enumerate_kills(tiny_cohort, tmp_path, 1) >= 70


def kill_at_random_moments(cohort, out, kills, seed):
    """Start builds and kill each of them after a random time; return how many were killed before they ended."""
    generator, killed = random.Random(seed), 0
    command = [sys.executable, "-m", "upfield.sharding.shard", *arguments(cohort, out), "--jobs", "2"]
    for _ in range(kills):
        build = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            build.wait(generator.uniform(0.3, 4.0))
        if build.poll() is not None:
            shutil.rmtree(out)
            continue
        os.killpg(build.pid, signal.SIGKILL)
        build.wait()
        killed += 1
    return killed


@pytest.mark.slow
def test_builds_killed_at_random_moments_are_finished_to_the_same_bytes(run_cli, tiny_cohort, tiny_shards, tmp_path):
    out = tmp_path / "shards"
    assert kill_at_random_moments(tiny_cohort, out, 30, seed=1) >= 10
    assert run_cli(main, *arguments(tiny_cohort, out))[0] == 0
    assert contents(out) == contents(tiny_shards)


def test_a_build_killed_with_its_workers_leaves_none_of_them_behind(run_cli, tiny_cohort, tiny_shards, tmp_path):
    out = tmp_path / "shards"
    command = [sys.executable, "-m", "upfield.sharding.shard", *arguments(tiny_cohort, out), "--jobs", "2"]
    build = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.rglob("*.tar")) and build.poll() is None:
        time.sleep(0.01)
    build.kill()
    build.wait()
    time.sleep(1)
    assert run_cli(main, *arguments(tiny_cohort, out))[0] == 0
    assert contents(out) == contents(tiny_shards)


def fail_after(monkeypatch, count, error):
    """Make writing fail after `count` samples, as on a full disk."""
    plain, done = shard_writer._write_sample, 0

    def failing(out, sample):
        nonlocal done
        done += 1
        if done > count:
            raise OSError(error, os.strerror(error))
        return plain(out, sample)

    monkeypatch.setattr(shard_writer, "_write_sample", failing)


def test_a_disk_that_fills_up_is_reported_and_finished_shards_are_kept(
    run_cli, tiny_cohort, tiny_shards, tmp_path, monkeypatch
):
    out = tmp_path / "shards"
    with monkeypatch.context() as patch:
        fail_after(patch, 100, errno.ENOSPC)
        code, _, err = run_cli(main, *arguments(tiny_cohort, out))
    assert code == 1
    assert "the disk cannot be written: No space left on device" in err.splitlines()[-1]
    assert not list(out.rglob(".tmp-*"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert before
    assert run_cli(main, *arguments(tiny_cohort, out))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(out) == contents(tiny_shards)


def test_a_failing_extension_leaves_the_old_set_as_it_was(run_cli, tiny_cohort, tiny_shards, tmp_path, monkeypatch):
    out = shutil.copytree(tiny_shards, tmp_path / "shards")
    text = (tiny_cohort / "cohorts.yaml").read_text() + "  - {name: more, high: 'more/{subject}.nii.gz'}\n"
    cohort = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    (cohort / "cohorts.yaml").write_text(text)
    (cohort / "more").mkdir()
    image = nib.Nifti1Image.from_filename(cohort / "IXI-T1/IXI002-Guys-0700-T1.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), cohort / "more/m1.nii.gz")
    old = [line for line in text.splitlines() if not line.startswith(("  - name: ixi", "    high: IXI"))]
    (cohort / "cohorts.yaml").write_text("\n".join(old) + "\n")
    with monkeypatch.context() as patch:
        fail_after(patch, 10, errno.ENOSPC)
        assert run_cli(main, *arguments(cohort, out))[0] == 1
    left = contents(out)
    assert {name: left[name] for name in contents(tiny_shards)} == contents(tiny_shards)
    assert run_cli(main, *arguments(cohort, out))[0] == 0
    assert run_cli(verify, out)[0] == 0


@contextlib.contextmanager
def as_nobody():
    """Act as an unprivileged user if the tests run as root."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.fixture
def public_cohort(tiny_cohort):
    """A copy of the cohort that everybody can read, in a folder that nobody but root can change."""
    with tempfile.TemporaryDirectory() as folder:
        cohort = shutil.copytree(tiny_cohort, Path(folder) / "cohort")
        for path in (Path(folder), cohort, *cohort.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield cohort
        for path in (Path(folder), cohort, *(path for path in cohort.rglob("*") if path.is_dir())):
            path.chmod(0o755)


def test_a_folder_without_write_permission_is_reported(run_cli, public_cohort, tmp_path):
    assert run_cli(main, *arguments(public_cohort, tmp_path / "loads_all_modules"))[0] == 0
    with as_nobody():
        code, _, err = run_cli(main, *arguments(public_cohort, public_cohort / "shards"))
    assert code == 2
    assert err.splitlines()[-1] == (
        f"upfield shard: error: {public_cohort}/shards: cannot write there (Permission denied). Choose another --out."
    )


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_is_reported(run_cli, tiny_cohort, tiny_shards, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        code, _, err = run_cli(main, *arguments(tiny_cohort, disk / "shards"))
        assert code == 2
        assert "of free disk space" in err
    finally:
        subprocess.run(["umount", disk], check=True)
