"""The command: which scans it reads, writes, skips and resumes, and what it prints."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from heads import OBLIQUE, SHAPE, load, write_scan

from upfield.common.files import hash_file, write_json
from upfield.export.enhance import main
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.scans import enhancer
from upfield.export.scans.restoration import restore_volume
from upfield.export.scans.scan import finish, prepare, write_enhanced

SCRIPT = Path(__file__).parents[2] / "export" / "enhance.py"


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with two scans, one of them in a subfolder, and with files that are not scans."""
    folder = tmp_path / "scans"
    (folder / "a").mkdir(parents=True)
    (folder / ".cache").mkdir()
    write_scan(folder / "one.nii", "PSR", OBLIQUE)
    write_scan(folder / "a" / "two.NII.GZ", "LAS")
    (folder / "._one.nii").write_bytes(b"resource fork of macOS")
    (folder / ".cache" / "three.nii").write_bytes(b"hidden")
    (folder / "notes.txt").write_text("no scan")
    return folder


def test_a_folder_keeps_its_structure_and_every_bad_file_is_listed_at_the_end(
    tiny_model: Path, tmp_path: Path, scans: Path, run_cli: Callable
) -> None:
    (scans / "bad.nii").write_bytes(b"nothing")
    (scans / "a" / "gone.nii.gz").symlink_to("nowhere")
    code, out, err = run_cli(main, tiny_model, scans, "--out", tmp_path / "out")
    assert code == 2
    assert "2 of 4 scans could not be enhanced" in err
    end = err[err.index("could not be enhanced:") :]
    assert f"{scans}/bad.nii: this is not a readable NIfTI file" in end
    assert f"{scans}/a/gone.nii.gz: there is no such file" in end
    assert "Traceback" not in err
    assert "CPUExecutionProvider" in err
    assert files_of(tmp_path / "out") == {"one.nii.gz", "one.json", "a/two.nii.gz", "a/two.json"}
    assert f"{tmp_path}/out/one.nii.gz: 45 x 50 x 38 voxels of 1 mm" in out
    for name in ("one.nii.gz", "a/two.nii.gz"):
        image = load(tmp_path / "out" / name)
        assert image.get_data_dtype() == np.float32
        voxels = np.asarray(image.dataobj)
        assert 0 <= voxels.min() < voxels.max() <= 1


def test_a_pipe_in_a_folder_does_not_hold_up_the_others(
    tiny_model: Path, tmp_path: Path, scans: Path, run_cli: Callable
) -> None:
    os.mkfifo(scans / "pipe.nii")
    code, out, err = run_cli(main, tiny_model, scans, "--out", tmp_path / "out")
    assert code == 2
    assert f"{scans}/pipe.nii is not a regular file. Leave it out." in err
    assert len(out.splitlines()) == 2


def test_a_fault_in_one_scan_is_reported_and_the_others_are_enhanced(
    tiny_model: Path, tmp_path: Path, scans: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scans / "bad.nii").write_bytes(b"nothing")
    scan_name = os.fsdecode(b"K\xf6nig.nii")
    write_scan(scans / scan_name)

    def fail(path: Path, *rest: Any) -> Any:
        if path.name == "one.nii":
            raise KeyError(99)
        return prepare(path, *rest)

    monkeypatch.setattr(enhancer, "prepare", fail)
    code, out, err = run_cli(main, tiny_model, scans, "--out", tmp_path / "out")
    assert code == 1
    assert "2 of 4 scans could not be enhanced" in err
    end = err[err.index("could not be enhanced:") :]
    assert f"{scans}/one.nii: KeyError: 99. This is a bug in upfield" in end
    assert f"{scans}/bad.nii: this is not a readable NIfTI file" in end
    assert "Traceback" not in err
    target = Path(scan_name).with_suffix("")
    assert files_of(tmp_path / "out") == {f"{target}.nii.gz", f"{target}.json", "a/two.nii.gz", "a/two.json"}
    assert r"K\udcf6nig.nii.gz: " in out
    assert json.loads((tmp_path / "out" / f"{target}.json").read_text())["source"] == scan_name
    code, _, err = run_cli(main, tiny_model, scans / "one.nii", "--out", tmp_path / "again", "--debug")
    assert code == 1
    assert "raise KeyError(99)" in err
    assert err.endswith("KeyError: 99. This is a bug in upfield, not in your input: please report it.\n")


def test_the_provenance_names_source_model_and_parameters(tiny_model: Path, tmp_path: Path, run_cli: Callable) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    assert run_cli(main, tiny_model, scan, "--out", tmp_path / "out.nii", "--batch_size", 8, "--keep_ras")[0] == 0
    provenance = json.loads((tmp_path / "out.json").read_text())
    assert provenance["source"] == "scan.nii.gz"
    assert provenance["source_sha256"] == hash_file(scan)
    assert provenance["model_sha256"] == hash_file(tiny_model)
    assert provenance["output_sha256"] == hash_file(tmp_path / "out.nii")
    options = {"batch_size": 8, "device": "auto", "engine": "onnx", "keep_ras": True, "like": None}
    assert provenance["parameters"] == options
    assert provenance["versions"].keys() == {"upfield", "numpy", "scipy", "nibabel", "onnxruntime"}
    assert provenance["provider"] == "CPUExecutionProvider"
    assert "for research, not for diagnosis" in provenance["note"]
    # The provenance is passed on with the scan, and names of folders can contain names of people and machines.
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


def test_pytorch_writes_the_same_image(tiny_model: Path, tmp_path: Path, run_cli: Callable) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    for engine in ("onnx", "torch"):
        assert run_cli(main, tiny_model, scan, "--out", tmp_path / f"{engine}.nii", "--engine", engine)[0] == 0
    onnx, torch = (np.asarray(load(tmp_path / f"{engine}.nii").dataobj) for engine in ("onnx", "torch"))
    np.testing.assert_allclose(torch, onnx, atol=1e-5)
    provenance = json.loads((tmp_path / "torch.json").read_text())
    assert provenance["parameters"]["engine"] == "torch"
    assert "torch" in provenance["versions"]


def test_two_runs_give_the_same_bytes(tiny_model: Path, tmp_path: Path, scans: Path, run_cli: Callable) -> None:
    for name in ("first", "second"):
        assert run_cli(main, tiny_model, scans, "--out", tmp_path / name)[0] == 0
    for name in files_of(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_written_file_equals_the_results_of_the_stages(tiny_model: Path, tmp_path: Path, run_cli: Callable) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", "PSR", OBLIQUE)
    assert run_cli(main, tiny_model, scan, "--out", tmp_path / "out.nii.gz")[0] == 0
    restorer = OnnxRestorer(tiny_model, "cpu")
    upload = tmp_path / "anything.nii.gz"
    shutil.copy(scan, upload)
    prepared = prepare(upload, restorer.card, "the scan")
    restored = restore_volume(prepared.low, restorer, 4)
    written = write_enhanced(prepared, restored, tmp_path / "answer.nii.gz")
    assert (tmp_path / "answer.nii.gz").read_bytes() == (tmp_path / "out.nii.gz").read_bytes()
    np.testing.assert_array_equal(written.voxels, finish(prepared, restored).voxels)


def test_like_writes_on_the_other_images_grid(tiny_model: Path, tmp_path: Path, run_cli: Callable) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", "LAS", OBLIQUE)
    like = write_scan(tmp_path / "like.nii.gz", "PSR")
    arguments = (tiny_model, scan, "--out", tmp_path / "out.nii.gz")
    assert run_cli(main, *arguments, "--like", like)[0] == 0
    image, other = load(tmp_path / "out.nii.gz"), load(like)
    assert image.shape == other.shape
    np.testing.assert_allclose(image.affine, other.affine, atol=1e-5)
    grid = json.loads((tmp_path / "out.json").read_text())["parameters"]["like"]
    assert (grid["file"], grid["shape"]) == ("like.nii.gz", list(other.shape))
    code, _, err = run_cli(main, *arguments, "--like", like, "--keep_ras")
    assert code == 2
    assert "keep_ras and like cannot be combined" in err
    code, _, err = run_cli(main, tiny_model, scan, "--out", like, "--like", like)
    assert code == 2
    assert "Choose another --out" in err


def stamps(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_ino for name in files_of(folder)}


def test_resume_enhances_only_what_is_not_done(
    tiny_model: Path, tmp_path: Path, scans: Path, run_cli: Callable
) -> None:
    out = tmp_path / "out"

    def again(*arguments: object) -> set[str]:
        before = stamps(out)
        code, _, err = run_cli(main, tiny_model, scans, "--out", out, "--resume", *arguments)
        assert code == 0, err
        after = stamps(out)
        changed = {name for name in after if after[name] != before.get(name)}
        left = 2 - len({Path(name).stem.removesuffix(".nii") for name in changed})
        assert (f"skipped {left} of 2 scans, already enhanced" in err) == (left > 0)
        return changed

    out.mkdir()
    everything = {"one.nii.gz", "one.json", "a/two.nii.gz", "a/two.json"}
    one, two = {"one.nii.gz", "one.json"}, {"a/two.nii.gz", "a/two.json"}
    assert again() == everything
    assert again() == set()
    # The batch size does not change the image, but the order of the axes does.
    assert again("--batch_size", 2) == set()
    assert again("--keep_ras") == everything
    assert again() == everything
    # A run that was killed between provenance and output leaves no output, or an older one.
    (out / "one.nii.gz").unlink()
    assert again() == one
    (out / "a" / "two.nii.gz").write_bytes(b"older")
    assert again() == two
    (out / "one.json").write_text((out / "one.json").read_text().replace('"model_sha256": "', '"model_sha256": "0'))
    assert again() == one
    write_scan(scans / "one.nii", "LPS")
    assert again() == one
    assert again("--like", scans / "a" / "two.NII.GZ") == everything
    assert again("--like", scans / "a" / "two.NII.GZ") == set()


def test_a_run_killed_between_provenance_and_output_can_be_repeated_without_resume(
    tiny_model: Path, tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, target = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out" / "scan.nii.gz"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # The output is renamed last.
        patched.setattr("upfield.export.scans.enhancer.write_json", lambda *values: (write_json(*values), killed()))
        assert run_cli(main, tiny_model, scan, "--out", target)[0] == 130
    assert files_of(tmp_path / "out") == {"scan.json"}
    assert run_cli(main, tiny_model, scan, "--out", target)[0] == 0
    assert files_of(tmp_path / "out") == {"scan.json", "scan.nii.gz"}


def test_old_temporary_files_of_killed_runs_are_removed(tiny_model: Path, tmp_path: Path, run_cli: Callable) -> None:
    scan, out = write_scan(tmp_path / "s[1].nii.gz"), tmp_path / "out"
    out.mkdir()
    old, new, other = (out / f".tmp-{name}.nii.gz" for name in ("7-s[1]", "8-s[1]", "7-t"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    assert run_cli(main, tiny_model, scan, "--out", out)[0] == 0
    assert files_of(out) == {new.name, other.name, "s[1].nii.gz", "s[1].json"}


def test_a_full_disk_ends_the_work_and_leaves_nothing_half_done(
    tiny_model: Path, tmp_path: Path, scans: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scans / "bad.nii").write_bytes(b"nothing")

    def write(prepared: Any, restored: Any, path: Path, layout: Any) -> Any:
        if "two" not in path.name:
            path.write_bytes(b"half")
            raise OSError(28, os.strerror(28), str(path))
        return write_enhanced(prepared, restored, path, layout)

    monkeypatch.setattr(enhancer, "write_enhanced", write)
    code, _, err = run_cli(main, tiny_model, scans, "--out", tmp_path / "out")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last == (
        f"upfield enhance: error: {tmp_path}/out/one.nii.gz: there is not enough space to write this file (No "
        "space left on device). Free some space, and run the same command with --resume."
    )
    assert f"  {scans}/bad.nii: this is not a readable NIfTI file" in err
    assert "of 3 scans; --resume" in err
    assert files_of(tmp_path / "out") <= {"a/two.nii.gz", "a/two.json"}


def test_an_output_that_cannot_be_written_does_not_stop_the_others(
    tiny_model: Path, tmp_path: Path, scans: Path, run_cli: Callable
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a file where a folder has to be")
    code, _, err = run_cli(main, tiny_model, scans, "--out", tmp_path / "out")
    assert code == 2
    assert f"{tmp_path}/out/a" in err
    assert files_of(tmp_path / "out") == {"a", "one.nii.gz", "one.json"}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read and write everything")
def test_folders_without_permission_are_reported(
    tiny_model: Path, tmp_path: Path, scans: Path, run_cli: Callable
) -> None:
    (scans / "a").chmod(0)
    code, _, err = run_cli(main, tiny_model, scans, "--out", tmp_path / "out")
    (scans / "a").chmod(0o700)
    assert code == 2
    assert f"{scans}/a: the folder cannot be searched" in err
    assert "one.nii.gz" in files_of(tmp_path / "out")


def test_an_interrupt_ends_promptly_and_keeps_finished_scans(tiny_model: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_scan(scans / "a.nii.gz")
    voxels = np.random.default_rng(0).random((200, 256, 256), np.float32)
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(scans / "b.nii")
    command = [sys.executable, SCRIPT, tiny_model, scans, "--out", tmp_path / "out", "--batch_size", "64"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        # A shell makes its background processes ignore SIGINT, and this test may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    # The first scan is written, so the second is being restored.
    assert "a.nii.gz" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    watchdog.cancel()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "enhanced 1 of 2 scans; --resume continues with the others" in err
    assert files_of(tmp_path / "out") == {"a.nii.gz", "a.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "nowhere.nii.gz", "--out", "out"], "nowhere.nii.gz: there is no such file or folder"),
        (["MODEL", "SCAN", "TINY", "--out", "one.nii.gz"], "2 scans cannot be written to one file"),
        (["MODEL", "SCAN", "other/scan.nii", "--out", "out"], "would be written twice"),
        (["MODEL", "SCAN", "--out", "SCAN"], "exists and is not an enhanced scan"),
        (["MODEL", "SCAN", "--out", "out", "--device", "cuda"], "cuda needs an NVIDIA GPU"),
        (["nowhere.onnx", "SCAN", "--out", "out"], "nowhere.onnx: there is no such file"),
        (["MODEL", "--out", "out"], "SCANS is missing"),
        (["MODEL", "TINY", "--out", "out"], "expected a field of view of at least 9 mm"),
        (["MODEL", "SCAN", "--out", "out", "--like", "nowhere.nii"], "nowhere.nii: there is no such file"),
        (["MODEL", "SCAN", "--out", "out", "--batch_size", "0"], "batch_size: expected at least 1"),
        (["MODEL", "text.txt", "--out", "out"], "the name must end in .nii, .nii.gz, .mgh, .mgz"),
        (
            ["MODEL", "SCAN", "--out", "text.txt"],
            "text.txt: outputs are NIfTI files. Name a folder, or a file",
        ),
        (["MODEL", "empty", "--out", "out"], "the folder contains no .nii, .nii.gz, .mgh, .mgz file"),
    ],
)
def test_bad_input_is_refused(
    tiny_model: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    scan = write_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "text.txt").write_text("no scan")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scan.nii").write_bytes(b"")
    nib.Nifti1Image(np.random.default_rng(0).random((7, 5, 3), np.float32), np.eye(4)).to_filename("tiny.nii.gz")
    places = {"MODEL": tiny_model, "SCAN": scan, "TINY": "tiny.nii.gz"}
    code, _, err = run_cli(main, *(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_every_flag_is_a_key_of_the_file(tiny_model: Path, tmp_path: Path, run_cli: Callable) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", "PSR")
    config = tmp_path / "enhance.yaml"
    config.write_text(
        f"model: {tiny_model}\nscans: [{scan}]\nout: {tmp_path}/out\nbatch_size: 2\ndevice: cpu\nkeep_ras: true\n"
        "resume: true\nlike: null\n"
    )
    assert run_cli(main, "--config", config)[0] == 0
    assert load(tmp_path / "out" / "scan.nii.gz").shape == tuple(
        np.round(np.array(SHAPE) * (1.6, 1.6, 5)).astype(int).tolist()
    )
