"""MNIST digits from IDX files: the 5,000 that come with this package, or a folder of the user's.

Pixels are divided by 255, so inputs lie in [0, 1]; nothing is subtracted.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from gossamer.data.source import Data, spread
from gossamer.errors import FileError

EMBEDDED = Path(__file__).parent / "mnist5k"
CLASSES = 10
_LARGEST_BYTES = 2**31
_WAY_OUT = "copy the file again, or use the embedded digits with the name 'mnist'"


def mnist(folder: str | Path | None = None) -> Data:
    """MNIST as arrays: inputs (N, 1, 28, 28) float32 in [0, 1], labels (N,) int64.

    The embedded set has 4,000 digits for training and 1,000 for validation. A folder must hold the four standard files
    (raw or .gz, "train-images-idx3-ubyte" or "train-images.idx3-ubyte"); its t10k files are the validation set.

    Raises: FileError when a file is missing, truncated or foreign.
    """
    place = EMBEDDED if folder is None else Path(folder)
    train, validation = _pair(place, "train"), _pair(place, "t10k")
    inputs, labels = train
    chosen = spread(len(labels))
    name = "mnist" if folder is None else f"mnist:{folder}"
    return Data(train=train, calibration=(inputs[chosen], labels[chosen]), validation=validation, name=name)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, raw or gzipped (told apart by their first bytes, not by the name).

    Shapes: as the header says.
    Raises: FileError when the file cannot be read, is shorter or longer than its header says, or is no such file.
    """
    try:
        with _opened(path) as file:
            return _parse(file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(path, f"is a damaged gzip file ({error})", _WAY_OUT) from error
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error})", "name a folder with the four MNIST files") from error


def _opened(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else open(path, "rb")  # type: ignore[return-value]


def _parse(file: IO[bytes], path: Path) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
        raise FileError(path, f"is no IDX file of bytes (it starts with {head.hex() or 'nothing'})", _WAY_OUT)
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise FileError(path, "ends inside its header", _WAY_OUT)
    shape = struct.unpack(f">{head[3]}I", sizes)
    expected = math.prod(shape)
    if expected > _LARGEST_BYTES:
        raise FileError(path, f"claims to hold {expected} bytes (its header is damaged)", _WAY_OUT)
    values = file.read(expected + 1)
    if len(values) != expected:
        problem = f"is cut off: {len(values)} of {expected} bytes" if len(values) < expected else "goes on after its last value"
        raise FileError(path, problem, _WAY_OUT)
    return np.frombuffer(values, np.uint8).reshape(shape)


def _pair(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    image_path, label_path = _find(folder, f"{prefix}-images", "idx3-ubyte"), _find(folder, f"{prefix}-labels", "idx1-ubyte")
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise FileError(image_path, f"holds values of shape {images.shape}, not (count, 28, 28)", _WAY_OUT)
    if labels.ndim != 1 or len(labels) != len(images):
        raise FileError(label_path, f"holds labels of shape {labels.shape} for {len(images)} images", _WAY_OUT)
    if not len(labels):
        raise FileError(label_path, "holds no label", _WAY_OUT)
    if labels.max() >= CLASSES:
        raise FileError(label_path, f"holds the label {labels.max()}, not a digit", _WAY_OUT)
    inputs = torch.from_numpy(images.astype(np.float32)).unsqueeze(1).div_(255)
    return inputs, torch.from_numpy(labels.astype(np.int64))


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{separator}{kind}{suffix}" for separator in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    what = f"has no file {names[0]} (or .gz)" if folder.is_dir() else "is no folder"
    raise FileError(folder, what, "name a folder with the four MNIST files, or use the embedded digits with the name 'mnist'")
