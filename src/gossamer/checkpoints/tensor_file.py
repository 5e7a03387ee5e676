"""One safetensors file read piece by piece with plain reads: mapping it would count against limits on memory.

The form: 8 bytes with the length of the header (little-endian), the header in JSON, then the data of all tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.errors import FileError

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
LARGEST_HEADER = 100_000_000  # the format's own limit
_CUT_OFF = "it was cut off or is another file; fetch it again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: bytes [start, stop) after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """Length of its data."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file whose header was read and found sound.

    tensors    by name, in the order of their data
    data       where the data of the tensors begins in the file
    """

    path: Path
    tensors: dict[str, StoredTensor]
    data: int
    size_bytes: int
    header_sha256: str


def read_header(path: Path) -> TensorFile:
    """Read and check the header; the data is not touched.

    Raises: FileError when the file is missing, truncated or no safetensors file, and for tensors that overlap, leave gaps, lie
    outside the file, are of unknown type, or whose shape does not fit their length.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise FileError(path, f"is no safetensors file (header of {length} bytes in a file of {size})", _CUT_OFF)
            text = file.read(length)
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error})", "name a safetensors file that can be read") from error
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"has a damaged header ({error})", _CUT_OFF) from error
    if not isinstance(header, dict):
        raise FileError(path, "has a header that is no JSON object", _CUT_OFF)
    found = [_stored(path, name, entry) for name, entry in header.items() if name != "__metadata__"]
    tensors = sorted(found, key=lambda tensor: (tensor.start, tensor.stop))
    _check_layout(path, tensors, size - 8 - length)
    return TensorFile(path, {tensor.name: tensor for tensor in tensors}, 8 + length, size, hashlib.sha256(text).hexdigest())


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _stored(path: Path, name: str, entry: Any) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop]} if _are_sizes([*shape, start, stop]):
            pass
        case _:
            raise FileError(path, f"describes the tensor {name!r} in a way that cannot be read", _CUT_OFF)
    if dtype not in BITS:
        raise FileError(path, f"stores {name!r} as {dtype!r}, a type that is not known", f"convert it to one of {', '.join(BITS)}")
    wanted = math.prod(shape) * BITS[dtype] / 8
    if stop - start != wanted:
        what = f"gives {stop - start} bytes to {name!r}, which needs {wanted:.0f} for {shape} of {dtype}"
        raise FileError(path, what, _CUT_OFF)
    return StoredTensor(name, dtype, tuple(shape), start, stop)


def _are_sizes(numbers: list[Any]) -> bool:
    return all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)


def _check_layout(path: Path, tensors: list[StoredTensor], length: int) -> None:
    """The data of the tensors fills the file from the header to the end, one after the other."""
    end, before = 0, "the header"
    for tensor in tensors:
        if tensor.start != end:
            how = "overlaps" if tensor.start < end else "leaves a gap after"
            raise FileError(path, f"has a tensor {tensor.name!r} that {how} {before!r}", "the file is damaged or hostile; fetch it again")
        end, before = tensor.stop, tensor.name
    if end != length:
        what = f"ends {end - length} bytes before its tensors do" if end > length else f"has {length - end} bytes after its tensors"
        raise FileError(path, what, _CUT_OFF)


class Reader:
    """Reads pieces of an open file."""

    def __init__(self, file: TensorFile, handle: int) -> None:
        self.file, self._handle = file, handle

    def read(self, tensor: StoredTensor, start: int, stop: int) -> bytearray:
        """Bytes [start, stop) of a tensor's data. Raises FileError when the file has become shorter or cannot be read."""
        buffer = bytearray(stop - start)
        view, at = memoryview(buffer), self.file.data + tensor.start + start
        try:
            while view:
                count = os.preadv(self._handle, [view], at)
                if not count:
                    raise FileError(self.file.path, f"became shorter while {tensor.name!r} was read", "leave it alone until the end")
                view, at = view[count:], at + count
        except OSError as error:
            what = f"cannot be read at {tensor.name!r} ({error.strerror or error})"
            raise FileError(self.file.path, what, "check the disk, then run again") from error
        return buffer


@contextmanager
def reading(file: TensorFile) -> Iterator[Reader]:
    """A Reader that is closed at the end. Raises FileError when the file can no longer be opened."""
    try:
        handle = os.open(file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise FileError(file.path, f"cannot be read ({error.strerror or error})", "name a safetensors file that can be read") from error
    try:
        yield Reader(file, handle)
    finally:
        os.close(handle)
