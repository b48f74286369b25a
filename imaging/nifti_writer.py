"""Volumes to NIfTI files, in little time and always to the same bytes."""

from pathlib import Path

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header

from upfield.imaging.placement import SCANNER, Placement, place
from upfield.imaging.volume import Volume

# Float32 images hardly get smaller for more effort: zlib's level 9 takes forty times as long for one part in a hundred.
LEVEL = 2
DATA_OFFSET = 352
DESCRIP_BYTES = 80
MARK = b"enhanced by upfield, for research only"


def encode(volume: Volume, placement: Placement, descrip: bytes, compressed: bool) -> bytes:
    """Give a float32 NIfTI-1 file's bytes.

    Args:
        volume: voxels `(I, J, K)` in [0, 1] in the order of the file.
        placement: of the file that the volume was made from.
        descrip: cut to the 80 bytes that there is room for.
        compressed: whether to compress with gzip, with neither name nor time in its header.
    """
    fields = Nifti1Header()
    fields.set_data_dtype(np.float32)
    fields.set_data_shape(volume.voxels.shape)
    fields["vox_offset"] = DATA_OFFSET
    fields["scl_slope"], fields["scl_inter"] = 1, 0
    fields["cal_min"], fields["cal_max"] = 0, 1
    fields["xyzt_units"] = 2 | placement.time_unit  # mm
    fields["descrip"] = descrip[:DESCRIP_BYTES]
    place(fields, volume.affine, placement)
    # Four zeros: no extensions follow.
    content = fields.binaryblock + bytes(4) + volume.voxels.astype(np.float32, copy=False).tobytes(order="F")
    return igzip.compress(content, LEVEL, mtime=0) if compressed else content


def write_file(path: Path, volume: Volume, placement: Placement, descrip: bytes) -> None:
    """Write a volume `(I, J, K)` to a `.nii` or, compressed, to a `.nii.gz` file; see `encode`."""
    path.write_bytes(encode(volume, placement, descrip, compressed=path.name.lower().endswith(".gz")))


def write_volume(volume: Volume, path: Path) -> None:
    """Write `volume`, of shape `(I, J, K)`, as a float32 NIfTI file in scanner space."""
    write_file(path, volume, Placement(volume.affine, SCANNER, SCANNER, volume.affine), b"")


def marked(descrip: bytes) -> bytes:
    """Give a description that tells an enhanced scan from a measured one, with the scan's own behind it."""
    return b"; ".join(part for part in (MARK, descrip) if part)
