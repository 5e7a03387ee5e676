"""Checkpoints as Hugging Face writes them: one safetensors file, or several with an index that says which holds what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.checkpoints.tensor_file import StoredTensor, TensorFile, read_header
from gossamer.errors import FileError
from gossamer.files import read_json

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Files in the order of their names; each tensor lies in one of them. `path` is what the user named."""

    path: Path
    shards: tuple[TensorFile, ...]

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name, file by file, in the order of their data."""
        return {name: tensor for shard in self.shards for name, tensor in shard.tensors.items()}

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(shard.size_bytes for shard in self.shards)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read the headers of a checkpoint: a .safetensors file, an index (*.safetensors.index.json), or a folder that holds one of them.

    Raises: FileError when nothing of the kind is there, a shard is missing or damaged, the index names a tensor that its shard does
    not hold or leaves one out, or two shards hold the same name.
    """
    path = Path(path)
    file = _find(path) if path.is_dir() else path
    if not file.is_file():
        raise FileError(path, "does not exist", "name a .safetensors file, its index, or their folder")
    if file.name.endswith(".json"):
        return Checkpoint(path, _from_index(file))
    return Checkpoint(path, (read_header(file),))


def _find(folder: Path) -> Path:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    for found, what in ((indexes, "indexes"), (files, "safetensors files without an index")):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found[:3])
            raise FileError(folder, f"holds {len(found)} {what} ({names}{', ...' if len(found) > 3 else ''})", "name the one you mean")
    raise FileError(folder, "holds no safetensors file and no index", "name a .safetensors file, its index, or their folder")


def _from_index(path: Path) -> tuple[TensorFile, ...]:
    index = read_json(path, "list of safetensors files")
    places = _weight_map(path, index)
    shards = []
    for name in sorted(set(places.values())):
        if not (path.parent / name).is_file():
            raise FileError(path.parent / name, f"does not exist, but {path.name} names it", "fetch the missing file")
        shards.append(read_header(path.parent / name))
    held = {tensor: shard.path.name for shard in shards for tensor in shard.tensors}
    if sum(len(shard.tensors) for shard in shards) > len(held):
        twice = next(tensor for tensor in held if sum(tensor in shard.tensors for shard in shards) > 1)
        raise FileError(path, f"has two files that both hold {twice!r}", "the files do not belong together; fetch them again")
    for tensor, file in places.items():
        if held.get(tensor) != file:
            raise FileError(path, f"says that {file} holds {tensor!r}, which it does not", "fetch the index and the files again")
    for tensor, file in held.items():
        if tensor not in places:
            raise FileError(path, f"leaves out {tensor!r}, which {file} holds", "fetch the index and the files again")
    return tuple(shards)


def _weight_map(path: Path, index: Any) -> dict[str, str]:
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise FileError(path, "has no weight_map from tensors to files", "name the index of a sharded checkpoint")
    for file in places.values():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise FileError(path, f"names {file!r}, which is no .safetensors file beside it", "the index is damaged or hostile")
    return places
