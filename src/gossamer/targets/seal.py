"""A check sum behind a file's end, for runtimes that crash on damaged files: it is looked at before they see any of it.

Readers of flatbuffers go by offsets from the front and never see what lies behind the end.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from gossamer.errors import FileError

_SEAL = struct.Struct("<4sI")  # magic, CRC-32 of all before
_MAGIC = b"gcrc"


def sealed(data: bytes) -> bytes:
    """The contents of a file with their check sum."""
    return data + _SEAL.pack(_MAGIC, zlib.crc32(data))


def unsealed(path: Path, data: bytes) -> bytes:
    """The contents without it. Raises FileError for any others than those that were written."""
    body, end = data[: -_SEAL.size], data[-_SEAL.size :]
    if end != _SEAL.pack(_MAGIC, zlib.crc32(body)):
        raise FileError(
            path, "is damaged, or another program wrote it: it does not end with the check sum of its contents", "export it again"
        )
    return body
