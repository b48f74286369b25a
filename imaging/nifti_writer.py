"""Encode volumes as NIfTI-1 files: nibabel makes the bytes, isal compresses them.

Equal volumes make equal bytes. nibabel's own compression is not used: it is zlib's, while isal compresses faster.
"""

from pathlib import Path

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header, Nifti1Image

from upfield.imaging.placement import SCANNER, Placement, place
from upfield.imaging.volume import Volume

# float32 images hardly get smaller with more effort: zlib's level 9 takes 40 times as long and saves 1%.
LEVEL = 2
DESCRIP_BYTES = 80
MARK = b"enhanced by upfield, for research only"


def encode(volume: Volume, placement: Placement, descrip: bytes, compressed: bool) -> bytes:
    """Encode a volume as the bytes of a float32 NIfTI-1 file.

    Args:
        volume: voxels `(I, J, K)` in [0, 1] in the order of the file.
        placement: placement of the file that the volume was made from.
        descrip: the header's description, cut to its 80 bytes.
        compressed: whether to compress with gzip; the gzip header holds neither a name nor a time.
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
    """Encode a volume `(I, J, K)` with `encode` and write it to a `.nii` or, compressed, to a `.nii.gz` file."""
    path.write_bytes(encode(volume, placement, descrip, compressed=path.name.lower().endswith(".gz")))


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume `(I, J, K)` as a float32 NIfTI file in scanner space."""
    write_file(path, volume, Placement(volume.affine, SCANNER, SCANNER, volume.affine), b"")


def marked(descrip: bytes) -> bytes:
    """Return a description that marks a scan as enhanced, followed by the description of the source scan."""
    return b"; ".join(part for part in (MARK, descrip) if part)
