"""Encode volumes as NIfTI-1 files with nibabel, and compress them with isal, which is faster than nibabel's zlib.

Equal volumes give equal bytes.
"""

from pathlib import Path

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header, Nifti1Image

from upfield.imaging.placement import SCANNER, Placement, place
from upfield.imaging.volume import Volume

# Higher levels hardly make float32 images smaller: zlib's level 9 takes 40 times as long and saves 1%.
LEVEL = 2
DESCRIP_BYTES = 80


def encode(volume: Volume, placement: Placement, descrip: bytes, compressed: bool) -> bytes:
    """Encode a volume as the bytes of a float32 NIfTI-1 file.

    Args:
        volume: voxels `(I, J, K)` in [0, 1], in the axis order of the file.
        placement: placement of the file that the volume was made from.
        descrip: description for the header, of which the first 80 bytes are kept.
        compressed: whether to compress with gzip. The gzip header holds neither a name nor a time.
    """
    fields = Nifti1Header()
    fields.set_data_dtype(np.float32)
    fields.set_data_shape(volume.voxels.shape)
    fields["cal_min"], fields["cal_max"] = 0, 1
    fields["xyzt_units"] = 2 | placement.time_unit  # mm
    fields["descrip"] = descrip[:DESCRIP_BYTES]
    place(fields, volume.affine, placement)
    image = Nifti1Image(volume.voxels.astype(np.float32, copy=False), None, fields)
    image.header.set_slope_inter(1, 0)
    content = image.to_bytes()
    return igzip.compress(content, LEVEL, mtime=0) if compressed else content


def write_file(path: Path, volume: Volume, placement: Placement, descrip: bytes) -> None:
    """Write a volume `(I, J, K)` to a NIfTI file, which is compressed if its name ends in `.gz`."""
    path.write_bytes(encode(volume, placement, descrip, compressed=path.name.lower().endswith(".gz")))


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume `(I, J, K)` as a float32 NIfTI file in scanner space."""
    write_file(path, volume, Placement(volume.affine, SCANNER, SCANNER, volume.affine), b"")
