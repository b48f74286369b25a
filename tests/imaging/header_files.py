"""NIfTI and MGH files with unusual header fields, and what shard, enhance, nibabel and SimpleITK make of them."""

import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from heads import model_card
from nibabel.freesurfer.mghformat import MGHHeader

from upfield.common.errors import VolumeError
from upfield.export.scans.scan import header_doubts, prepare
from upfield.imaging.header import read_header
from upfield.imaging.volume import Volume, read_volume
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import Source, Subject

# Half a turn about an axis, as axial scans have it, so that qfac and the quaternion matter.
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2.5, 0, -20], [0, 0, -3, 30], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(0, 1000, (10, 9, 8)).astype(np.int16)
READ, DOUBT, STRICT, REFUSED = "read", "doubt", "strict", "refused"
QUATERNION = {"quatern_c": 1.000001}
N2, MGH = nib.Nifti2Image, nib.MGHImage
MGH_DTYPE: Any = MGHHeader._hdrdtype
Q, S, BOTH, NONE = (1, 0), (0, 1), (1, 1), (0, 0)


@dataclass(frozen=True)
class Row:
    """A header with one unusual value."""

    name: str
    values: dict[str, Any]
    treated: str
    why: str
    says: str = ""
    reference: str | None = "nibabel"
    forms: tuple[int, int] = BOTH
    kind: Any = nib.Nifti1Image
    at: str = "scan.nii"
    raw: dict[int, bytes] = field(default_factory=dict)


def row(name: str, value: Any, treated: str, why: str, says: str = "", **others: Any) -> Row:
    """Return a row for one value of one field; `pixdim0` sets only `pixdim[0]`."""
    return Row(f"{name}={value}", {name: value}, treated, why, says, **others)


def write(folder: Path, row: Row, order: str = "<") -> Path:
    """Write the file of a row; only its own value differs from what nibabel writes."""
    voxels: Any = VOXELS
    if row.kind is MGH:
        content = bytearray(MGH(voxels, AFFINE).to_bytes())
        dtype = MGH_DTYPE
    else:
        image = row.kind(voxels, AFFINE, row.kind.header_class(endianness=order))
        image.header.set_data_dtype(np.dtype(np.int16))
        image.set_qform(AFFINE, row.forms[0])
        image.set_sform(AFFINE, row.forms[1])
        image.header.set_xyzt_units("mm")
        content = bytearray(image.to_bytes())
        dtype = image.header_class.template_dtype.newbyteorder(order)
    fields = np.frombuffer(bytes(content[: dtype.itemsize]), dtype=dtype)[0].copy()
    for name, value in row.values.items():
        if name in ("dim0", "pixdim0"):
            fields[name[:-1]][0] = value
        else:
            fields[name] = value
    content[: dtype.itemsize] = fields.tobytes()
    for offset, new in row.raw.items():
        content[offset : offset + len(new)] = new
    path = folder / row.at
    path.write_bytes(gzip.compress(content) if path.suffix == ".mgz" else content)
    return path


def shard_says(path: Path) -> tuple[list[str], list[str]]:
    """Return the problems and the doubts of shard about a file, and read its voxels if there is no problem."""
    subject = Subject("a", "s", "s", "train", Source((path,), False), None, "crop_pad", ())
    found = preflight([subject], jobs=1)
    problems = [problem.message for problem in found.problems if not problem.is_doubt]
    if not problems:
        try:
            read_volume(path)
        except VolumeError as error:
            problems.append(error.problem)
    # Other doubts compare the scan with the grid.
    return problems, [problem.message for problem in found.problems if problem.check == "values"]


def enhance_says(path: Path) -> tuple[list[str], list[str]]:
    """Return the error and the notes about the header of enhance about a file."""
    try:
        notes = prepare(path, model_card(), "scan").notes
    except VolumeError as error:
        return [error.problem], []
    # Other notes are about the voxels.
    return [], [note for note in header_doubts(read_header(path)) if note in notes]


def reference_of(path: Path, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels and affine in RAS+ as nibabel or SimpleITK reads them, or those that were written."""
    if row.reference == "plain":
        voxels, affine = VOXELS, AFFINE
    elif row.reference == "sitk":
        import SimpleITK

        image = SimpleITK.ReadImage(str(path))
        size = image.GetDimension()
        spacing, direction = np.array(image.GetSpacing())[:3], np.reshape(image.GetDirection(), (size, size))[:3, :3]
        affine = np.eye(4)
        affine[:3, :3] = direction * spacing
        affine[:3, 3] = np.array(image.GetOrigin())[:3]
        affine = np.diag([-1, -1, 1, 1]) @ affine
        voxels = SimpleITK.GetArrayFromImage(image).T
    else:
        with path.open("rb") as file:
            content = file.read()
        image = row.kind.from_bytes(gzip.decompress(content) if path.suffix == ".mgz" else content)
        voxels, affine = np.asarray(image.dataobj), image.affine
    voxels = voxels.reshape(voxels.shape[:3])
    canonical: Any = nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.float64), affine))
    return np.asarray(canonical.dataobj), canonical.affine


def normalised(volume: Volume) -> np.ndarray:
    """Scale voxels to their own range, whatever their unit."""
    voxels = volume.voxels.astype(np.float64)
    return (voxels - voxels.min()) / np.ptp(voxels)
