import errno
import os
import shutil
from collections import namedtuple
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from upfield.common.command import parse
from upfield.common.errors import InputError
from upfield.sharding.building import block_builder, capacity
from upfield.sharding.building.capacity import available_bytes, refuse_full_disks, set_bytes
from upfield.sharding.building.plan import Block, plan_blocks
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import Source, find_cohorts
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shard import COMMAND, main
from upfield.sharding.verify import main as verify

Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "available")


def fitting_jobs(blocks, config):
    return capacity.fitting_jobs([block.subjects for block in blocks], config)


def memory_bytes(block, config):
    return capacity.memory_bytes(block.subjects, config)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A function that sets the resources of the machine. By default, it has 8 cores and enough of everything else."""

    def become(disk_bytes=1e15, memory_bytes=1e12, cores=8, files=10**6):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(disk_bytes, 0, disk_bytes))
        monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: Memory(memory_bytes))
        monkeypatch.setattr(available_bytes, "__defaults__", (capacity.Path("/nowhere"), capacity.Path("/nowhere")))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr(capacity.resource, "getrlimit", lambda _: (files, 2 * files))

    become()
    return become


@pytest.fixture
def plan(tiny_cohort, tmp_path):
    """A function that returns the blocks of the tiny cohort and their configuration."""

    def make(*flags) -> tuple[list[Block], ShardConfig]:
        arguments = ["--config", tiny_cohort / "cohorts.yaml", "--out", tmp_path / "shards", *flags]
        config = parse(COMMAND, [str(argument) for argument in arguments])
        subjects = preflight(find_cohorts(config.cohorts, tiny_cohort).subjects).subjects
        return plan_blocks(subjects, config), config

    return make


def arguments(cohort, out, *more):
    return "--config", cohort / "cohorts.yaml", "--out", out, "--jobs", 1, *more


def total_bytes(blocks, config):
    return set_bytes(blocks, config)


def bytes_below(root):
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_a_large_machine_runs_the_requested_jobs(plan, tmp_path, capsys):
    blocks, config = plan("--jobs", 3)
    assert len(blocks) == 5
    assert fitting_jobs(blocks, config) == 3
    needed = total_bytes(blocks, config)
    refuse_full_disks({tmp_path: needed})
    assert f"{tmp_path}: about {needed / 1e6:.1f} MB to write, 1000000.0 GB free" in capsys.readouterr().err


@pytest.mark.parametrize(("cores", "jobs"), [(1, 1), (3, 3), (64, 5)])
def test_default_jobs_are_limited_by_cores_and_blocks(machine, plan, tmp_path, cores, jobs):
    machine(cores=cores)
    assert fitting_jobs(*plan()) == jobs


def test_default_jobs_are_fewer_if_memory_is_short(machine, plan, tmp_path):
    blocks, config = plan()
    each = max(memory_bytes(block, config) for block in blocks)
    for fitting in (1, 2, 4):
        machine(memory_bytes=each * (fitting + 0.5))
        assert fitting_jobs(blocks, config) == fitting


def test_jobs_that_exceed_memory_are_refused_with_the_number_that_fits(machine, plan, tmp_path):
    blocks, config = plan("--jobs", 4)
    machine(memory_bytes=2.5 * max(memory_bytes(block, config) for block in blocks))
    with pytest.raises(
        InputError, match=r"^--jobs: expected 4 x 0\.2 GB of free memory, found 0\.4 GB\. Use --jobs 2\.$"
    ):
        fitting_jobs(blocks, config)


@pytest.mark.parametrize("flags", [(), ("--jobs", 2)])
def test_too_little_memory_for_one_worker_is_refused(machine, plan, tmp_path, flags):
    machine(memory_bytes=1e8)
    with pytest.raises(InputError, match=r"GB of free memory, found 0\.1 GB\. .* smaller --subjects_per_block"):
        fitting_jobs(*plan(*flags))


def test_no_message_recommends_zero_jobs(machine, plan, tmp_path):
    machine(memory_bytes=1e8)
    with pytest.raises(InputError) as refused:
        fitting_jobs(*plan("--jobs", 2))
    assert "--jobs 0" not in str(refused.value)


def test_a_blocks_memory_grows_with_its_subjects_and_their_pairs(plan):
    def largest(*flags):
        blocks, config = plan(*flags)
        return max(memory_bytes(block, config) for block in blocks)

    voxels = 20 * 24 * 28
    assert largest("--subjects_per_block", 6) > largest("--subjects_per_block", 2) > largest("--subjects_per_block", 1)
    assert largest() > 1.5e8 + 2 * voxels * 3
    assert largest("--geometry.high_shape", "[40, 48, 56]") > largest() + 7 * 2 * voxels * 3


def test_a_blocks_memory_grows_with_its_files(tiny_cohort, plan, tmp_path):
    blocks, config = plan()
    path = tmp_path / "large.nii"
    nib.Nifti1Image(np.zeros((100, 200, 300), np.uint8), np.eye(4)).to_filename(path)
    (large,) = preflight([replace(blocks[0].subjects[0], high=Source((path,), stacked=False))]).subjects
    with_large = replace(blocks[0], subjects=(large, *blocks[0].subjects[1:]))
    assert memory_bytes(with_large, config) > memory_bytes(blocks[0], config) + 5e7


@pytest.mark.parametrize(
    ("limit", "expected"), [("3000000000\n", 2e9), ("max\n", 8e9), ("9223372036854771712\n", 8e9), (None, 8e9)]
)
def test_a_containers_limit_counts_if_it_is_the_lower_one(machine, tmp_path, limit, expected):
    machine(memory_bytes=8e9)
    if limit:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("1000000000\n")
    assert available_bytes(tmp_path, tmp_path) == expected


def test_a_containers_limit_reduces_the_jobs(machine, monkeypatch, plan, tmp_path):
    blocks, config = plan()
    each = max(memory_bytes(block, config) for block in blocks)
    (tmp_path / "memory.max").write_text(f"{int(3.5 * each)}\n")
    (tmp_path / "memory.current").write_text("0\n")
    monkeypatch.setattr(available_bytes, "__defaults__", (tmp_path, tmp_path))
    assert fitting_jobs(blocks, config) == 3


def test_a_containers_file_cache_counts_as_free(machine, tmp_path):
    machine(memory_bytes=8e9)
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("2900000000\n")
    (tmp_path / "memory.stat").write_text("anon 900000000\nfile 2000000000\ninactive_file 2000000000\n")
    assert available_bytes(tmp_path, tmp_path) == 2.1e9


def test_too_few_open_files_are_refused_with_the_limit_that_is_needed(machine, plan, tmp_path):
    machine(files=70)
    assert fitting_jobs(*plan("--jobs", 2)) == 2
    with pytest.raises(
        InputError, match=r"^open files: expected a limit of at least 80 for 4 workers, found 70"
    ) as error:
        fitting_jobs(*plan("--jobs", 4))
    assert str(error.value).endswith("Raise it with ulimit -n (at most 140), or use fewer --jobs.")


def test_memory_of_another_machine_is_not_judged_by_this_one(machine, plan, tmp_path):
    machine(memory_bytes=1e6, files=10)
    assert fitting_jobs(*plan("--executor", "ray", "--jobs", 4)) == 4


def test_nothing_to_build_needs_nothing(machine, plan, tmp_path):
    machine(disk_bytes=0, memory_bytes=0, files=0)
    assert fitting_jobs([], plan()[1]) == 8


def test_a_disk_too_small_is_refused_and_one_just_large_enough_is_not(machine, plan, tmp_path):
    needed = total_bytes(*plan())
    machine(disk_bytes=needed)
    refuse_full_disks({tmp_path: needed})
    machine(disk_bytes=needed - 1)
    with pytest.raises(
        InputError, match=rf"^{tmp_path}: expected [\d.]+ MB of free disk space, found [\d.]+ MB\. Free some"
    ):
        refuse_full_disks({tmp_path: needed})


def test_folders_on_one_disk_share_its_free_space(machine, tmp_path):
    machine(disk_bytes=1000)
    refuse_full_disks({tmp_path / "set": 500, tmp_path / "volumes": 500})
    with pytest.raises(InputError, match=f"^{tmp_path}/set and {tmp_path}/volumes: expected"):
        refuse_full_disks({tmp_path / "set": 500, tmp_path / "volumes": 501})


def test_a_command_without_disk_space_is_refused_before_it_writes_a_shard(run_cli, machine, tiny_cohort, tmp_path):
    machine(disk_bytes=1000)
    code, _, err = run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"))
    assert code == 2
    assert "Free some space, or choose a folder on another disk" in err.splitlines()[-1]
    assert not [path for path in (tmp_path / "shards").rglob("*") if path.suffix in (".tar", ".idx")]
    machine()
    assert run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"), "--seed", 1)[0] == 0


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    # The smaller the slices, the larger the share of headers and index.
    [((), 0.2), (("--context", 2), 0.1), (("--geometry.high_shape", "[20, 120, 100]"), 0.03)],
)
def test_the_estimate_is_near_the_sets_bytes(run_cli, tiny_cohort, plan, tmp_path, flags, tolerance):
    assert run_cli(main, *arguments(tiny_cohort, tmp_path / "shards", *flags))[0] == 0
    assert total_bytes(*plan(*flags)) == pytest.approx(bytes_below(tmp_path / "shards"), rel=tolerance)


@pytest.mark.parametrize("samples", [1, 4, 32])
def test_the_estimate_is_never_below_the_sets_bytes(run_cli, tiny_cohort, plan, tmp_path, samples):
    flags = ("--samples_per_shard", samples)
    assert run_cli(main, *arguments(tiny_cohort, tmp_path / "shards", *flags))[0] == 0
    assert total_bytes(*plan(*flags)) >= bytes_below(tmp_path / "shards")


@pytest.fixture
def half(tiny_cohort, tmp_path):
    """A set of the first cohort only, and a cohorts.yaml that lists both."""
    folder = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    both = (folder / "cohorts.yaml").read_text()
    (folder / "cohorts.yaml").write_text(both[: both.index("  - name: ixi")])
    assert main([str(argument) for argument in arguments(folder, tmp_path / "shards")]) == 0
    (folder / "cohorts.yaml").write_text(both)
    return folder


def test_a_set_whose_extension_was_refused_for_lack_of_space_still_verifies(run_cli, machine, half, tmp_path):
    machine(disk_bytes=1000)
    assert run_cli(main, *arguments(half, tmp_path / "shards"))[0] == 2
    assert run_cli(verify, tmp_path / "shards")[0] == 0


def test_a_build_that_ran_out_of_space_continues_with_space_for_the_rest(
    run_cli, machine, monkeypatch, tiny_cohort, plan, tmp_path
):
    def fill_up(root, name, samples, write=block_builder.write_shard):
        if len(list(root.rglob("*.tar"))) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(root, name, samples)

    with monkeypatch.context() as patch:
        patch.setattr(block_builder, "write_shard", fill_up)
        code, _, err = run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"))
    assert (code, "finished shards are kept" in err) == (1, True)
    done = bytes_below(tmp_path / "shards")
    machine(disk_bytes=total_bytes(*plan()) - 0.9 * done)
    assert run_cli(main, *arguments(tiny_cohort, tmp_path / "shards"))[0] == 0
