"""What of a compression is done, line by line, so that it goes on after a kill."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gossamer.errors import FileError

NAME = ".compression.jsonl"


class Journal:
    """A first line that says what is being done, then one for each finished tensor. Only whole lines count."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self.done: dict[str, Any] = {}

    def begin(self, job: Mapping[str, Any]) -> None:
        """Read what is done, or start with this job.

        Raises: FileError when the journal is of another job, naming what differs, or damaged.
        """
        lines = self._file.read().split(b"\n")
        torn = lines.pop()
        if torn:  # killed while writing it
            self._file.truncate(self._file.tell() - len(torn))
            self._file.seek(0, os.SEEK_END)
        if not lines:
            self._write(job)
            return
        try:
            begun, *entries = [json.loads(line) for line in lines]
            self.done = {entry["tensor"]: entry["entry"] for entry in entries}
        except (ValueError, TypeError, KeyError) as error:
            raise FileError(self._path, f"is damaged ({error})", f"delete the folder {self._path.parent} and begin anew") from error
        if begun != job:
            raise FileError(
                self._path.parent,
                f"holds an unfinished compression that differs in {_difference(begun, job)}",
                "give what was given then, or another folder, or delete this one",
            )

    def add(self, entries: Mapping[str, Any]) -> None:
        """Say that these tensors are done; their data must be safe on the disk already."""
        for name, entry in entries.items():
            self._file.write(json.dumps({"tensor": name, "entry": entry}).encode() + b"\n")
        self._flush()
        self.done.update(entries)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._flush()

    def _flush(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            what = f"cannot be written ({error.strerror or error})"
            raise FileError(self._path, what, "make space, then run again: what is done is kept") from error


@contextmanager
def opened_journal(folder: Path) -> Iterator[Journal]:
    """The journal of a folder, locked against other processes. Raises FileError when one of them is at work there."""
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise FileError(path, f"cannot be written ({error.strerror or error})", "choose a folder that is writable") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FileError(folder, "is being written by another process", "wait for it or choose another folder") from error
        file.seek(0)
        yield Journal(path, file)


def _difference(begun: Any, job: Mapping[str, Any]) -> str:
    if not isinstance(begun, dict):
        return "everything"
    different = [key for key in job if begun.get(key) != job[key]]
    return ", ".join(f"{key} ({begun.get(key)!r}, now {job[key]!r})" if key != "source" else "the source's files" for key in different)
