"""Reading and writing files safely: writes are atomic, damaged input gives one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gossamer.errors import FileError


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
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(path, f"cannot be written ({reason})", "choose a folder that is writable and has space") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


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
    except ValueError as error:
        raise FileError(path, f"is not a {what} (no valid JSON: {error})", "it was cut off or is another file; write it anew") from error
