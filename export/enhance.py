"""`upfield enhance`: NIfTI in -> NIfTI out, files or folders, batched."""

import sys
from pathlib import Path
from typing import Any

from upfield.export.configuration import EnhanceConfig
from upfield.sharding.command import Command, execute
from upfield.sharding.errors import InputError

SUFFIXES = (".nii", ".nii.gz", ".mgz")
RESEARCH_USE = (
    "Made by a neural network from a low-field scan: for research, not for diagnosis; details may be invented."
)


def enhance(config: EnhanceConfig) -> None:
    """Enhance every scan; one that cannot be read does not stop the others, and is named at the end."""
    from upfield.export.restorer import OnnxRestorer
    from upfield.sharding.progress import say, track

    assert config.model is not None
    assert config.out is not None
    jobs = plan_outputs(config.scans, config.out)
    restorer = OnnxRestorer(config.model, config.device)
    say(f"{config.model.name} on {restorer.provider}")
    failures: list[str] = []
    for scan, target in track(jobs, "scans", len(jobs)):
        try:
            enhance_file(scan, target, restorer, config)
        except InputError as error:
            failures.append(str(error))
            if len(jobs) > 1:
                say(f"left out: {error}")
    if failures and len(jobs) > 1:
        raise InputError(f"{len(failures)} of {len(jobs)} scans could not be enhanced; the first: {failures[0]}")
    if failures:
        raise InputError(failures[0])


def plan_outputs(scans: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Pair every scan with the file that it becomes; folders keep their inner structure.

    Raises:
        InputError: a scan is missing, a folder holds none, or two would become one file, or a file itself.
    """
    found: list[tuple[Path, Path]] = []
    for scan in scans:
        if scan.is_dir():
            inside = sorted(path for path in scan.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
            # Where the output lies within the folder, what an earlier run wrote is no scan.
            inside = [path for path in inside if not path.resolve().is_relative_to(out.resolve())]
            if not inside:
                raise InputError(f"{scan}: expected {', '.join(SUFFIXES)} files in the folder, found none")
            found += [(path, _as_nifti(path.relative_to(scan))) for path in inside]
        elif scan.is_file():
            found.append((scan, _as_nifti(Path(scan.name))))
        else:
            raise InputError(f"{scan}: expected a NIfTI file or a folder of them, found none; check the path")
    if out.name.endswith((".nii", ".nii.gz")):
        if len(found) > 1:
            raise InputError(f"{out}: expected a folder to write {len(found)} scans to, found a file's name")
        return _refuse_clashes([(found[0][0], out)])
    return _refuse_clashes([(scan, out / name) for scan, name in found])


def _as_nifti(name: Path) -> Path:
    suffix = next((suffix for suffix in SUFFIXES if name.name.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"{name}: expected a file ending in {', '.join(SUFFIXES)}, found another; convert it first")
    stem = name.name.removesuffix(suffix)
    return name.with_name(f"{stem}.nii.gz")


def _refuse_clashes(jobs: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    taken: dict[Path, Path] = {}
    for scan, target in jobs:
        if target.resolve() in {source.resolve() for source, _ in jobs} or _is_foreign(target):
            raise InputError(f"{target}: expected a new file or an enhanced one, found a scan; choose another --out")
        if target in taken:
            raise InputError(f"{target}: expected one scan for each output, found {taken[target]} and {scan}")
        taken[target] = scan
    return jobs


def _is_foreign(target: Path) -> bool:
    """Tell whether a file is there that has no provenance of ours beside it, and so is somebody's original."""
    return target.is_file() and not _provenance_path(target).is_file()


def _provenance_path(target: Path) -> Path:
    return target.with_name(f"{target.name.removesuffix('.gz').removesuffix('.nii')}.json")


def enhance_file(scan: Path, target: Path, restorer: Any, config: EnhanceConfig) -> None:
    """Enhance one scan and write it with its provenance, each complete or not at all.

    Raises:
        InputError: the scan cannot be used.
    """
    from importlib.metadata import version

    from upfield.export.scan import enhance_volume, write_volume
    from upfield.sharding.atomic import atomic_path, write_json
    from upfield.sharding.tarshard import hash_file

    enhanced = enhance_volume(scan, restorer, config.batch_size)
    with atomic_path(target) as temporary:
        write_volume(enhanced, temporary)
    shape, spacing_mm = enhanced.voxels.shape, enhanced.spacing_mm
    assert config.model is not None
    provenance = {
        "source": scan.name,
        "source_sha256": hash_file(scan),
        "model": config.model.name,
        "model_sha256": hash_file(config.model),
        "data_sha256": restorer.card.tree["data_sha256"],
        "provider": restorer.provider,
        "batch_size": config.batch_size,
        "normalisation": restorer.normalisation,
        "shape": list(shape),
        "spacing_mm": [round(float(mm), 6) for mm in spacing_mm],
        "versions": {name: version(name) for name in ("upfield", "numpy", "nibabel")},
        "note": RESEARCH_USE,
    }
    write_json(_provenance_path(target), provenance)
    size = " x ".join(map(str, shape))
    print(f"{target}: {size} voxels of {spacing_mm.max():.3g} mm")


COMMAND = Command("enhance", EnhanceConfig, enhance, positional=("model", "scans"), required=("model", "scans", "out"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
