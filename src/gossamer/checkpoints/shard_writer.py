"""One safetensors file written piece by piece in any order, and put in place when it is whole."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gossamer.checkpoints.tensor_file import BITS, StoredTensor
from gossamer.errors import FileError

Buffer = bytes | bytearray | memoryview
_WAY_OUT = "make space or choose another folder, then run again: what is done is kept"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file will hold, known before its data is. `header` is everything before the data; offsets count from its end."""

    tensors: dict[str, StoredTensor]
    header: bytes

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return len(self.header) + max((tensor.stop for tensor in self.tensors.values()), default=0)


def lay_out(wanted: Iterable[tuple[str, str, tuple[int, ...]]]) -> Layout:
    """The layout for tensors given as (name, dtype, shape): wide types first, so that all of them are aligned; then by name."""
    tensors: dict[str, StoredTensor] = {}
    end = 0
    for name, dtype, shape in sorted(wanted, key=lambda item: (-BITS[item[1]], item[0])):
        start, end = end, end + math.prod(shape) * BITS[dtype] // 8
        tensors[name] = StoredTensor(name, dtype, shape, start, end)
    entries = {t.name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.start, t.stop]} for t in tensors.values()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Layout(tensors, len(text).to_bytes(8, "little") + text)


class ShardWriter:
    """Fills `path` with the tensors of a layout, under the name `partial` until it is whole."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.partial = partial_path(path)
        self.unsynced_bytes = 0
        self._handle = -1

    @contextmanager
    def opened(self) -> Iterator[ShardWriter]:
        """Open the partial file, making it in full length at once, so that a full disk shows now. Raises FileError."""
        try:
            fresh = not holds(self.partial, self.layout)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | (os.O_TRUNC if fresh else 0)
            self._handle = os.open(self.partial, flags, 0o666)
            if fresh:
                _reserve(self._handle, self.layout.size_bytes)
                self._write(0, self.layout.header)
        except OSError as error:
            self._close()
            if fresh:
                with contextlib.suppress(OSError):
                    self.partial.unlink()
            raise self._failed(error) from error
        try:
            yield self
        finally:
            self._close()

    def write(self, name: str, start: int, data: Buffer) -> None:
        """Put bytes into a tensor's data, from its byte `start` on. Raises FileError when the disk is full."""
        tensor = self.layout.tensors[name]
        at = tensor.start + start
        assert at + memoryview(data).nbytes <= tensor.stop
        try:
            self._write(len(self.layout.header) + at, data)
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, at: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self.unsynced_bytes += len(view)
        while view:
            count = os.pwrite(self._handle, view, at)
            view, at = view[count:], at + count

    def sync(self) -> None:
        """Make all that was written last through a power cut. Raises FileError when the disk refuses."""
        try:
            getattr(os, "fdatasync", os.fsync)(self._handle)  # macOS has only the second
        except OSError as error:
            raise self._failed(error) from error
        self.unsynced_bytes = 0

    def finish(self) -> None:
        """Put the whole file in place. Raises FileError when that is impossible."""
        try:
            os.fsync(self._handle)
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> FileError:
        return FileError(self.path, f"cannot be written ({error.strerror or error})", _WAY_OUT)

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _reserve(handle: int, size_bytes: int) -> None:
    """Make a file as long as it will be; where the system can, its place on the disk is taken, too."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size_bytes)
    else:
        os.ftruncate(handle, size_bytes)


def partial_path(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.partial")


def holds(path: Path, layout: Layout) -> bool:
    """Whether a file has this layout: its length and its header."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size == layout.size_bytes and file.read(len(layout.header)) == layout.header
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
