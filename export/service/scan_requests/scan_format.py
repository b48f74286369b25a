"""The format of an upload, recognised by its content, because names from web clients may have any ending or none."""

import zlib
from pathlib import Path

from upfield.export.scans.outputs import SUFFIXES, as_nifti
from upfield.imaging.compressed_files import GZIP_MAGIC
from upfield.imaging.formats.mgh_fields import MGH_VERSION
from upfield.imaging.formats.nifti_fields import is_nifti1, is_nifti2
from upfield.imaging.header import HEADER_BYTES

# Compressed, a header takes less. Empty gzip members may precede it.
START_BYTES = 4096


def stored_suffix(name: str, start: bytes) -> str:
    """Return the suffix for a stored upload, from which readers recognise the format.

    Args:
        name: the client's name for the file, which decides if the content does not; may be empty.
        start: the first `START_BYTES` bytes of the upload.

    Raises:
        InputError: neither the content nor the suffix of the name is of a format that upfield reads.
    """
    if suffix := _suffix_of(start):
        return suffix
    if not Path(name).suffix:
        # Readers accept both compressed NIfTI and compressed MGH under this suffix.
        return ".mgz" if start.startswith(GZIP_MAGIC) else ".nii"
    as_nifti(Path(name))
    return next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))


def stem_of(name: str) -> str:
    """Return a client's name for a scan without the suffix of the format; `scan` if nothing is left."""
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name.removesuffix(name[len(name) - len(suffix) :]) or "scan"


def _suffix_of(start: bytes) -> str | None:
    is_compressed = start.startswith(GZIP_MAGIC)
    content = _inflated(start) if is_compressed else start
    if is_nifti1(content) or is_nifti2(content):
        return ".nii.gz" if is_compressed else ".nii"
    if content.startswith(MGH_VERSION):
        return ".mgz" if is_compressed else ".mgh"
    return None


def _inflated(start: bytes) -> bytes:
    """Return the first bytes of a gzip file's content, as far as its first bytes hold them."""
    content = b""
    try:
        while start and len(content) < HEADER_BYTES:
            member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            content += member.decompress(start, HEADER_BYTES)
            start = member.unused_data
    except zlib.error:
        pass
    return content
