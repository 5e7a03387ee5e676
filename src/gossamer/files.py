"""Reading and writing files safely: writes are atomic, damaged input gives one sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gossamer.errors import FileError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HEADER = "gossamer"  # the metadata key of our safetensors files: JSON, and a check sum on a line of its own


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary neighbour of `path`, then move it into place.

    A crash leaves the old file or the new one, never half of one.
    Raises: FileError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        os.close(handle)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(path, f"cannot be written ({reason})", "choose a folder that is writable and has space") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards. Raises: FileError when the disk that it is on is full."""
    try:
        with tempfile.TemporaryDirectory(prefix="gossamer-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        way_out = "make space there, or name another folder in the environment variable TMPDIR"
        raise FileError(tempfile.gettempdir(), f"temporary files cannot be written ({error.strerror})", way_out) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_with(path, lambda temporary: _write_bytes(temporary, text.encode()))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    write_with(path, lambda temporary: _write_bytes(temporary, data))


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, indented so that people can read and diff it."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read JSON that should be a `what`. Raises FileError when it is missing, truncated or something else."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", f"name an existing {what}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is not a {what} (no valid JSON: {error})", "it was cut off or is another file; write it anew") from error


def write_tensors(path: Path, header: object, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically. Tensors may share memory; each is written whole.

    A check sum over all of it is written along: the format itself would hand out damaged numbers without a word.
    """
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in copies.values())
    copies = {name: tensor.clone() if shared[tensor.untyped_storage().data_ptr()] > 1 else tensor for name, tensor in copies.items()}
    text = json.dumps(header)
    metadata = {_HEADER: f"{text}\n{_check_sum(text, copies)}"}  # one key: the order of several is not repeatable
    write_with(Path(path), lambda temporary: save_file(copies, temporary, metadata=metadata))


def read_tensors(path: Path, what: str) -> tuple[Any, dict[str, Tensor]]:
    """The header and the tensors of a file from `write_tensors`. Nothing in the file is executed.

    Raises: FileError when the file is missing, truncated, damaged, or not a `what`. Files without a check sum are taken as they are.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(path, "does not exist", f"name an existing {what}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(_HEADER)
            if metadata is None:
                raise FileError(path, f"is a safetensors file, but no {what}", f"name a {what} that gossamer wrote")
            text, _, check = metadata.partition("\n")
            header, tensors = json.loads(text), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
            if check and check != _check_sum(text, tensors):
                raise FileError(path, "is damaged: its contents do not have the check sum that was written with them", "write it anew")
            return header, tensors
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error})", f"name a {what} that can be read") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise FileError(path, f"is truncated or no {what} ({error})", "it was cut off or is another file; write it anew") from error


def _check_sum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the header and of all tensors by name, with their types and shapes, as 8 hexadecimal digits."""
    found = zlib.crc32(header.encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
