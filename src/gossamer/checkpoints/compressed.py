"""Reading a compressed checkpoint tensor by tensor, or only some rows of one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.checkpoints.blocks import decode
from gossamer.checkpoints.coder import COPIED_BYTES
from gossamer.checkpoints.settings import CodeSettings, parts_of
from gossamer.checkpoints.source import open_checkpoint
from gossamer.checkpoints.stream import FORMAT, MANIFEST, VERSION
from gossamer.checkpoints.tensor_file import BITS, Reader, StoredTensor, TensorFile, reading
from gossamer.errors import ConfigError, FileError, GossamerError, PlanError, nearest
from gossamer.files import read_json
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import PerBlock
from gossamer.numerics.packing import Bytes, unpack_bits

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as it was before: its shape, its type's name in safetensors, why it has no codes ("" when it has), and digests."""

    shape: tuple[int, ...]
    dtype: str
    reason: str
    sha256: Mapping[str, str]


class CompressedCheckpoint:
    """What `compress_checkpoint` wrote. Holds no data; each call reads what it needs."""

    def __init__(self, path: Path, settings: CodeSettings, tensors: Mapping[str, TensorInfo], shards: tuple[TensorFile, ...]) -> None:
        self.path, self.settings, self.tensors = path, settings, tensors
        self._places = {name: (shard, tensor) for shard in shards for name, tensor in shard.tensors.items()}

    def dequantized(self, name: str, rows: slice | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor, or the rows of it that a slice (step 1) names, in float as it was before or in `dtype`.

        Shapes: (R, *) or, with rows, (rows, *).
        Raises: ConfigError for an unknown name (suggests the nearest), for a slice with steps, and for a tensor without rows.
        """
        info = self._info(name)
        first, last = _bounds(rows, info.shape, name)
        if info.reason:
            with self._opened(name) as (reader, tensor):
                found = _rows(reader, tensor, first, last)
            return found if dtype is None else found.to(dtype)
        length = info.shape[-1]
        codes, scale, zero = self._stored(name, first, last)
        weight = decode(codes, scale, zero, length, self.settings).reshape(last - first, *info.shape[1:])
        return weight.to(dtype or DTYPES[info.dtype])

    def quantizer(self, name: str) -> Quantizer:
        """The quantizer of a coded weight (R, K), as a plan holds it. Raises ConfigError for a tensor without codes."""
        info = self._coded(name)
        _, scale, zero = self._stored(name, 0, info.shape[0])
        fmt = self.settings.format
        zeros = np.zeros(scale.shape, np.int64) if zero is None else unpack_bits(zero, fmt.bits, scale.shape[1]).astype(np.int64) + fmt.lo
        blocks = PerBlock(len(info.shape) - 1, self.settings.block)
        return Quantizer(fmt, blocks, tuple(scale.reshape(-1).tolist()), tuple(zeros.reshape(-1).tolist()))

    def codes(self, name: str) -> Tensor:
        """The codes of a coded weight: int8, or uint8 for unsigned formats, in its shape. Raises ConfigError for a tensor without codes."""
        info, fmt = self._coded(name), self.settings.format
        packed, _, _ = self._stored(name, 0, info.shape[0])
        found = torch.from_numpy(unpack_bits(packed, fmt.bits, info.shape[-1])).to(torch.int16).add_(fmt.lo)
        return found.to(torch.int8 if fmt.signed else torch.uint8).reshape(info.shape)

    def load_into(self, module: nn.Module, *, strict: bool = True) -> tuple[str, ...]:
        """Copy all tensors into a module's state of the same names, one at a time; returns the names that only one of both has.

        A tensor of the module that shares its memory with one that is held (tied weights) may be left out of the checkpoint.
        Raises: PlanError for a shape that does not fit and, if strict, for a name that only one of both has; nothing is copied then.
        """
        state = module.state_dict()
        held = {tensor.data_ptr() for name, tensor in state.items() if name in self.tensors}
        missing = [name for name, tensor in state.items() if name not in self.tensors and tensor.data_ptr() not in held]
        foreign = [name for name in self.tensors if name not in state]
        if strict and missing:
            known = nearest(missing[0], self.tensors)
            raise PlanError(f"the module has {missing[0]!r}, which {self.path} does not hold; {known}, or load with strict=False.")
        if strict and foreign:
            known = nearest(foreign[0], state)
            raise PlanError(f"{self.path} holds {foreign[0]!r}, which the module does not have; {known}, or load with strict=False.")
        both = {name: tensor for name, tensor in state.items() if name in self.tensors}
        for name, tensor in both.items():
            if tuple(tensor.shape) != self.tensors[name].shape:
                found = self.tensors[name].shape
                raise PlanError(f"{name!r} has the shape {tuple(tensor.shape)} in the module and {found} in {self.path}; they do not fit.")
        with torch.no_grad():
            for name, tensor in both.items():
                tensor.copy_(self.dequantized(name))
        return (*missing, *foreign)

    def check(self) -> None:
        """Read all data and compare it with the digests. Raises FileError naming the tensor that is not what was written."""
        for info in self.tensors.values():
            for name, wanted in info.sha256.items():
                digest = hashlib.sha256()
                with self._opened(name) as (reader, tensor):
                    for start in range(0, tensor.size_bytes, COPIED_BYTES):
                        digest.update(reader.read(tensor, start, min(start + COPIED_BYTES, tensor.size_bytes)))
                if digest.hexdigest() != wanted:
                    raise FileError(self._places[name][0].path, f"holds another {name!r} than was written", "compress the source again")

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise ConfigError("name", name, f"a tensor of the checkpoint ({nearest(name, self.tensors)})")
        return self.tensors[name]

    def _coded(self, name: str) -> TensorInfo:
        info = self._info(name)
        if info.reason:
            raise ConfigError("name", name, f"a tensor with codes; this one stayed float ({info.reason})")
        return info

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[Reader, StoredTensor]]:
        shard, tensor = self._places[name]
        with reading(shard) as reader:
            yield reader, tensor

    def _stored(self, name: str, first: int, last: int) -> tuple[Bytes, Tensor, Bytes | None]:
        """Codes (R, bytes), scales (R, blocks) and zero points (R, bytes) of some rows, all axes but the last as rows."""
        found = []
        for part in parts_of(self.tensors[name].shape, self.settings):
            with self._opened(f"{name}.{part.suffix}") as (reader, tensor):
                found.append(_rows(reader, tensor, first, last).reshape(-1, part.shape[-1]))
        codes, scale, *zero = found
        return codes.numpy(), scale, zero[0].numpy() if zero else None


def load_compressed(path: str | Path) -> CompressedCheckpoint:
    """Open a folder that `compress_checkpoint` wrote; reads headers and the manifest only, and executes nothing.

    Raises: FileError when it is missing, unfinished, damaged or of a later version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileError(folder, "is no folder", "name the folder that compress_checkpoint wrote")
    manifest = read_json(folder / MANIFEST, "manifest of a compressed checkpoint")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileError(folder / MANIFEST, "is no manifest of a compressed checkpoint", "name the folder that compress_checkpoint wrote")
    if manifest.get("version") != VERSION:
        what = f"has version {manifest.get('version')!r}, this one reads {VERSION}"
        raise FileError(folder / MANIFEST, what, "load it with the version of gossamer that wrote it")
    shards = open_checkpoint(folder).shards
    try:
        settings = CodeSettings(manifest["weights"], manifest["block"], manifest["ranges"], scales=manifest.get("scales", "float32"))
        tensors = {name: _checked_info(entry) for name, entry in manifest["tensors"].items()}
        _check_parts(tensors, settings, shards)
    except (GossamerError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileError(folder / MANIFEST, f"is damaged or does not fit its files ({error})", "compress the source again") from error
    return CompressedCheckpoint(folder, settings, tensors, shards)


def _checked_info(entry: Any) -> TensorInfo:
    shape, dtype, reason, digests = tuple(entry["shape"]), entry["dtype"], entry["float"], dict(entry["sha256"])
    if not all(type(size) is int and size >= 0 for size in shape) or not isinstance(reason, str) or dtype not in BITS:
        raise ValueError(f"a tensor of shape {shape} and type {dtype!r}")
    return TensorInfo(shape, dtype, reason, digests)


def _check_parts(tensors: Mapping[str, TensorInfo], settings: CodeSettings, shards: tuple[TensorFile, ...]) -> None:
    """The files hold exactly what the manifest says, in these shapes."""
    held = {name: (tensor.dtype, tensor.shape) for shard in shards for name, tensor in shard.tensors.items()}
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, info in tensors.items():
        parts = {name: (info.dtype, info.shape)}
        if not info.reason:
            parts = {f"{name}.{part.suffix}": (part.dtype, part.shape) for part in parts_of(info.shape, settings)}
        if set(info.sha256) != set(parts):
            raise ValueError(f"digests of {name!r}")
        wanted |= parts
    if wanted != held:
        raise ValueError(f"{next(name for name in wanted | held if wanted.get(name) != held.get(name))!r}")


def _bounds(rows: slice | None, shape: tuple[int, ...], name: str) -> tuple[int, int]:
    if rows is None:
        return 0, shape[0] if shape else 1
    if not shape:
        raise ConfigError("rows", rows, f"None: {name!r} is one number")
    first, last, step = rows.indices(shape[0])
    if step != 1:
        raise ConfigError("rows", rows, "a slice with step 1")
    return first, max(first, last)


def _rows(reader: Reader, tensor: StoredTensor, first: int, last: int) -> Tensor:
    """Some rows of a stored tensor, or the number that it is."""
    if tensor.dtype not in DTYPES:
        raise FileError(reader.file.path, f"stores {tensor.name!r} as {tensor.dtype}, which torch tensors here cannot hold", "skip it")
    shape = (last - first, *tensor.shape[1:]) if tensor.shape else ()
    each = math.prod(tensor.shape[1:]) * BITS[tensor.dtype] // 8
    data = reader.read(tensor, first * each, last * each)
    if not data:
        return torch.empty(shape, dtype=DTYPES[tensor.dtype])
    return torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).reshape(shape)
