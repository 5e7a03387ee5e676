"""Compressing a checkpoint larger than memory: shard by shard, tensor by tensor, block by block; killed, it goes on where it was."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.checkpoints.blocks import weights_within
from gossamer.checkpoints.coder import TensorCoder
from gossamer.checkpoints.companions import companions, copy_companions
from gossamer.checkpoints.journal import NAME as JOURNAL
from gossamer.checkpoints.journal import Journal, opened_journal
from gossamer.checkpoints.report import CompressionReport, result_of
from gossamer.checkpoints.settings import CodeSettings, choose_coded, parts_of
from gossamer.checkpoints.shard_writer import Layout, ShardWriter, holds, lay_out, partial_path, sync_folder
from gossamer.checkpoints.source import INDEX, Checkpoint, open_checkpoint
from gossamer.checkpoints.tensor_file import TensorFile, reading
from gossamer.errors import FileError
from gossamer.files import read_json, write_json
from gossamer.progress import OnProgress, Progress, silent

MANIFEST = "compression.json"
FORMAT, VERSION = "gossamer compressed checkpoint", 1
MEMORY_BYTES = 256 << 20
SYNC_BYTES = 32 << 20  # written between two points from which a killed run goes on; a tensor is never split between them
STAGE = "compress weights"


def compress_checkpoint(
    source: str | Path,
    destination: str | Path,
    settings: CodeSettings | None = None,
    *,
    memory_bytes: int = MEMORY_BYTES,
    on_progress: OnProgress = silent,
) -> CompressionReport:
    """Give the weights of a safetensors checkpoint codes of a few bits without ever holding more than a piece of one.

    source         a .safetensors file, a sharded checkpoint's index, or the folder of one; only read
    destination    a folder for shards of the same names, an index, and compression.json, the manifest: what each tensor is, or why
                   it stayed as it was, and digests; configuration and tokenizer files of a source that is a folder or an index are copied
    memory_bytes   working memory beyond what the process holds already; one tensor may be far larger
    on_progress    is told the megabytes of the source that are done

    Killed at any moment, the same call goes on with the tensors that are not done, and ends with the same bytes. Called again when
    all is done, it returns the report at once.
    Raises: FileError for a source that is damaged or hostile, a disk that is full, a destination that holds something else or an
    unfinished compression of another kind; ConfigError for patterns that match nothing and too little memory; DataError for weights
    that are NaN or infinite. What is done stays.
    """
    began = time.monotonic()
    settings = settings or CodeSettings()
    weights_within(settings.block, memory_bytes)
    folder, checkpoint = Path(destination), open_checkpoint(source)
    reasons = choose_coded(checkpoint.tensors, settings)
    shards = [_planned(shard, folder, reasons, settings) for shard in checkpoint.shards]
    _check_names(checkpoint, shards)
    job = {"format": FORMAT, "version": VERSION, **settings.to_json(), "source": [_identity(shard) for shard in checkpoint.shards]}
    _check_folder(folder, shards, _companions(checkpoint))
    if (folder / MANIFEST).exists():
        entries, resumed = _finished(folder, job), checkpoint.size_bytes
    else:
        with opened_journal(folder) as journal:
            journal.begin(job)
            run = _Run(journal, TensorCoder(settings, memory_bytes), reasons, on_progress, checkpoint)
            resumed = run.forget_lost(shards)
            _check_space(folder, shards)
            for shard in shards:
                run.write(shard)
            _check_unchanged(checkpoint, job["source"])
            entries = {name: journal.done[name] for name in checkpoint.tensors}
            copy_companions(_companions(checkpoint), folder)
            _finish(folder, job, shards, entries)
    (folder / JOURNAL).unlink(missing_ok=True)
    results = tuple(result_of(name, entry) for name, entry in entries.items())
    size = sum(shard.layout.size_bytes for shard in shards)
    return CompressionReport(results, checkpoint.size_bytes, size, resumed, time.monotonic() - began, _peak_rss_bytes())


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file of the source and the one that it becomes."""

    source: TensorFile
    path: Path
    layout: Layout

    @property
    def complete(self) -> bool:
        return holds(self.path, self.layout)


def _planned(source: TensorFile, folder: Path, reasons: Mapping[str, str], settings: CodeSettings) -> _Shard:
    wanted = []
    for name, tensor in source.tensors.items():
        if reasons[name]:
            wanted.append((name, tensor.dtype, tensor.shape))
        else:
            wanted += [(f"{name}.{part.suffix}", part.dtype, part.shape) for part in parts_of(tensor.shape, settings)]
    return _Shard(source, folder / source.path.name, lay_out(wanted))


def _check_names(checkpoint: Checkpoint, shards: list[_Shard]) -> None:
    written = [name for shard in shards for name in shard.layout.tensors]
    if len(set(written)) < len(written):
        twice = next(name for name in written if written.count(name) > 1)
        raise FileError(
            checkpoint.path,
            f"holds both {twice.rpartition('.')[0]!r} and {twice!r}, which would get the same name",
            "rename one, or skip the first",
        )
    for shard in shards:
        if shard.path.exists() and any(shard.path.samefile(source.path) for source in checkpoint.shards):
            raise FileError(shard.path, "would be overwritten, but is read", "choose another folder")


def _identity(shard: TensorFile) -> dict[str, Any]:
    """What tells that a file is still the one that was read: a copy of it is another one."""
    stat = shard.path.stat()
    return {
        "file": shard.path.name,
        "size_bytes": shard.size_bytes,
        "modified_ns": stat.st_mtime_ns,
        "header_sha256": shard.header_sha256,
    }


def _check_unchanged(checkpoint: Checkpoint, before: list[dict[str, Any]]) -> None:
    for shard, identity in zip(checkpoint.shards, before, strict=True):
        if _identity(shard) != identity:
            raise FileError(shard.path, "changed while it was read", "delete the destination and begin anew")


def _check_folder(folder: Path, shards: list[_Shard], others: tuple[Path, ...]) -> None:
    if (folder / JOURNAL).exists() or (folder / MANIFEST).exists():
        return
    for path in (folder / INDEX, *(shard.path for shard in shards), *(folder / path.name for path in others)):
        if path.exists():
            raise FileError(path, "would be overwritten", "choose another folder, or delete this one")


def _companions(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """None for a single file that was named: nobody knows what else lies in its folder."""
    if not checkpoint.path.is_dir() and checkpoint.path.suffix != ".json":
        return ()
    return companions(checkpoint.shards[0].path.parent, frozenset({INDEX, MANIFEST, JOURNAL}))


def _check_space(folder: Path, shards: list[_Shard]) -> None:
    free = shutil.disk_usage(folder).free
    missing = [shard for shard in shards if not shard.complete and not holds(partial_path(shard.path), shard.layout)]
    needed = sum(shard.layout.size_bytes for shard in missing)
    if needed > free:
        raise FileError(folder, f"needs {needed:,} bytes, but {free:,} are free", "make space or choose another folder")


def _finished(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST, "manifest of a compressed checkpoint")
    if not isinstance(manifest, dict) or any(manifest.get(key) != value for key, value in job.items()):
        what = "holds a compressed checkpoint of another source, or made with other settings"
        raise FileError(folder, what, "choose another folder, or delete this one")
    entries: dict[str, Any] = manifest["tensors"]
    return entries


def _finish(folder: Path, job: Mapping[str, Any], shards: list[_Shard], entries: Mapping[str, Any]) -> None:
    places = {name: shard.path.name for shard in shards for name in shard.layout.tensors}
    total = sum(shard.layout.size_bytes - len(shard.layout.header) for shard in shards)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    write_json(folder / MANIFEST, {**job, "tensors": entries})
    sync_folder(folder)


class _Run:
    """Writes the shards, telling the journal what is safe on the disk."""

    def __init__(
        self, journal: Journal, coder: TensorCoder, reasons: Mapping[str, str], on_progress: OnProgress, checkpoint: Checkpoint
    ) -> None:
        self._journal, self._coder, self._reasons, self._on_progress = journal, coder, reasons, on_progress
        self._total = sum(tensor.size_bytes for tensor in checkpoint.tensors.values())
        self._done = 0

    def forget_lost(self, shards: list[_Shard]) -> int:
        """Do not count as done what is in no file any more; returns the bytes of the source that are done."""
        for shard in shards:
            whole = shard.complete and all(name in self._journal.done for name in shard.source.tensors)
            if not whole and not holds(partial_path(shard.path), shard.layout):
                for name in shard.source.tensors:
                    self._journal.done.pop(name, None)
        done = [tensor for shard in shards for tensor in shard.source.tensors.values() if tensor.name in self._journal.done]
        self._done = sum(tensor.size_bytes for tensor in done)
        return self._done

    def write(self, shard: _Shard) -> None:
        """Everything of a shard that is not done."""
        missing = [tensor for tensor in shard.source.tensors.values() if tensor.name not in self._journal.done]
        if shard.complete and not missing:
            return
        writer = ShardWriter(shard.path, shard.layout)
        pending: dict[str, Any] = {}
        with reading(shard.source) as reader, writer.opened():
            for tensor in missing:
                self._tell(tensor.name, 0)
                entry = self._coder.run(reader, writer, tensor, self._reasons[tensor.name], self._teller(tensor.name))
                self._done += tensor.size_bytes
                pending[tensor.name] = {"file": shard.path.name, **entry}
                if writer.unsynced_bytes >= SYNC_BYTES:
                    writer.sync()
                    self._journal.add(pending)
                    pending = {}
            writer.sync()
            self._journal.add(pending)
            writer.finish()
        self._tell(shard.path.name, 0)

    def _teller(self, name: str) -> Callable[[int], None]:
        return lambda done: self._tell(name, done)

    def _tell(self, note: str, done: int) -> None:
        megabyte = 1_000_000
        self._on_progress(Progress(STAGE, (self._done + done) // megabyte, -(-self._total // megabyte), note))


def _peak_rss_bytes() -> int:
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
