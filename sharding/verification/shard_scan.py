"""Scan one shard: read its tar member by member, and check each sample."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from tokenize import TokenError
from typing import Any, Protocol, cast

import numpy as np

from upfield.sharding.shardset.sample_key import Unit
from upfield.sharding.shardset.shard_index import LABELS, MEMBERS
from upfield.sharding.verification.shard_stream import ShardStream

# From +0 upwards, the bit patterns of float16 ascend with the value. One comparison of bits therefore finds all values
# that are above 1, negative, infinite or NaN, in a fraction of the time that numpy takes for half-precision numbers.
# Minus zero is the exception.
ONE_BITS = np.float16(1).view(np.uint16)
MINUS_ZERO_BITS = np.float16(-0.0).view(np.uint16)


class ForwardFile(Protocol):
    """A file that is read from its start to its end; parts may be skipped."""

    def read(self, count: int, /) -> bytes:
        """Read up to `count` bytes; fewer only at the end."""
        ...

    def seek(self, position: int, /) -> object:
        """Move to a later position."""
        ...

    def tell(self) -> int:
        """Return the position."""
        ...


@dataclass(frozen=True)
class SampleLayout:
    """The members that each sample of a set must have."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of the arrays `low` and `high` in the manifest. Labels have that of `high`."""
    labelled: frozenset[str] = frozenset()
    """Cohorts whose samples carry labels."""

    def members(self, key: str) -> tuple[str, ...]:
        """Return the suffixes of the members of a sample, in order."""
        return (*MEMBERS, LABELS) if key.partition("-")[0] in self.labelled else MEMBERS

    def array(self, suffix: str) -> tuple[tuple[int, ...], type[np.generic]]:
        """Return the shape and type of the array in a member."""
        if suffix == LABELS:
            return self.shapes["high"], np.int16
        return self.shapes[suffix.removesuffix(".npy")], np.float16


@dataclass(frozen=True)
class ScannedSample:
    """One sample of a shard, as the tar holds it."""

    members: tuple[tuple[str, int, int], ...]
    """Name, offset and size of each member."""
    problems: tuple[str, ...] = ()
    """What is wrong with the sample by itself."""
    key: str | None = None
    """Key of the sample; None if the members do not belong to one sample."""
    subject: tuple[str, str] | None = None
    """Cohort and subject of the record; None if there is no readable record."""
    crc32: int | None = None
    """CRC-32 of all bytes of the sample with their headers and padding; None if they were not all read."""

    @property
    def name(self) -> str:
        """Name of the first member, for messages."""
        return self.members[0][0]


def scan_samples(file: ForwardFile, layout: SampleLayout, quick: bool) -> list[ScannedSample]:
    """Read a tar member by member, and check the sample that each few members form.

    Args:
        file: the tar; only later positions are sought.
        layout: the members that each sample must have.
        quick: skip the voxel values.

    Raises:
        tarfile.TarError: the file is not a complete tar.
    """
    samples: list[ScannedSample] = []
    with tarfile.open(fileobj=cast(Any, file), mode="r:") as tar:
        members = iter(tar)
        while (low := next(members, None)) is not None:
            samples.append(_scan_sample(file, low, members, layout, quick))
    return samples


def _scan_sample(
    file: ForwardFile,
    first: tarfile.TarInfo,
    following: Iterator[tarfile.TarInfo],
    layout: SampleLayout,
    quick: bool,
) -> ScannedSample:
    """Check the members of one sample, each before the tar moves on to the next one."""
    key = first.name.partition(".")[0]
    members = [first]
    problems: list[str] = []
    subject = None
    expected = layout.members(key)
    for number, suffix in enumerate(expected):
        if number:
            if (member := next(following, None)) is None:
                break
            members.append(member)
        if members[-1].name != f"{key}.{suffix}":
            continue
        if suffix == "json":
            problem, subject = _record_problem(file, members[-1], key)
            problems += [f"json: {problem}"] if problem else []
        else:
            if problem := array_problem(file, members[-1], *layout.array(suffix), quick):
                problems.append(f"{suffix.removesuffix('.npy')}: {problem}")
    crc32 = None
    if isinstance(file, ShardStream):
        # The tar reads the next header from here.
        file.seek(members[-1].offset_data + -(-members[-1].size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        crc32 = file.take_checksum()
    places = tuple((member.name, member.offset_data, member.size) for member in members)
    names = [member.name for member in members]
    if names != [f"{key}.{suffix}" for suffix in expected]:
        problem = f"expected the members {', '.join(expected)} of one sample, found {', '.join(names)}"
        return ScannedSample(places, (problem,), crc32=crc32)
    return ScannedSample(places, tuple(problems), key, subject, crc32)


def array_problem(
    file: ForwardFile, member: tarfile.TarInfo, shape: tuple[int, ...], dtype: type[np.generic], quick: bool
) -> str | None:
    """Describe what is wrong with an npy member that should hold an image in [0, 1], or labels from 0 upwards.

    Args:
        file: the tar.
        member: the member, with its position in the tar.
        shape: shape of the array in the manifest.
        dtype: float16 for an image, int16 for labels.
        quick: check the header only.

    Returns:
        The first problem, or None.
    """
    file.seek(member.offset_data)
    header = _npy_header(shape, dtype)
    start = file.read(min(len(header), member.size))
    # numpy parses a header so slowly that a check would take a fifth longer, and nearly all headers are equal.
    if start != header and (problem := _header_problem(start, shape, dtype)):
        return problem
    size, expected = member.size - len(start), 2 * int(np.prod(shape))
    if size != expected:
        return f"expected {expected} bytes of voxels, found {size}"
    return None if quick else _value_problem(file.read(size), dtype)


def _value_problem(data: bytes, dtype: type[np.generic]) -> str | None:
    """Describe values of an image outside [0, 1], or of labels below 0."""
    if dtype is np.int16:
        labels = np.frombuffer(data, dtype=np.int16)
        return f"expected labels of at least 0, found {labels.min()}" if (labels < 0).any() else None
    bits = np.frombuffer(data, dtype=np.uint16)
    outside = (bits > ONE_BITS) & (bits != MINUS_ZERO_BITS)
    if not outside.any():
        return None
    return f"expected values in 0..1, found {outside.sum()} outside, for example {bits[outside][0].view(np.float16)}"


@cache
def _npy_header(shape: tuple[int, ...], dtype: type[np.generic]) -> bytes:
    """Return the bytes before the values of an array of this shape and type, as numpy writes them."""
    buffer = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _header_problem(start: bytes, shape: tuple[int, ...], expected: type[np.generic]) -> str | None:
    """Describe what is wrong with the first bytes of an npy member, if their meaning is not the expected one."""
    buffer = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(buffer)
        found, fortran_order, dtype = np.lib.format.read_array_header_1_0(buffer)
    except (ValueError, SyntaxError, TokenError) as error:
        # A flipped bit in the header's text can cause any of these errors.
        return f"this is not an npy header: {error}"
    if (version, found, fortran_order, dtype) != ((1, 0), shape, False, expected):
        name = expected.__name__
        return f"expected {name} {shape} in C order, npy (1, 0), found {dtype} {found}, npy {version}"
    if buffer.tell() != len(start):
        return f"expected an npy header of {len(start)} bytes, found {buffer.tell()}"
    return None


def _record_problem(file: ForwardFile, member: tarfile.TarInfo, key: str) -> tuple[str | None, tuple[str, str] | None]:
    """Read a sample's record. Return what is wrong with it, or None, and its cohort and subject, if it has them."""
    file.seek(member.offset_data)
    try:
        record = json.loads(file.read(member.size))
        unit = Unit(record["cohort"], record["subject"], record["kind"], record["variant"])
        of = unit.key(record["slice"])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"cohort, subject, kind, variant or slice is missing or wrong ({type(error).__name__}: {error})"
        return problem, None
    return None if of == key else f"this is the record of another sample, {of}", (unit.cohort, unit.subject)
