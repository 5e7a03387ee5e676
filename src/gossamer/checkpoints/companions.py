"""The small files beside the weights that a loader asks for: configuration, tokenizer, vocabulary."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from gossamer.files import write_with

SUFFIXES = frozenset({".json", ".jsonl", ".txt", ".model", ".jinja", ".tiktoken", ".md"})  # data only: nothing that could be executed
LICENCES = frozenset({"LICENSE", "LICENCE", "NOTICE"})
LARGEST_BYTES = 64 << 20  # vocabularies of 250,000 pieces take 17 MB


def companions(folder: Path, reserved: frozenset[str]) -> tuple[Path, ...]:
    """Files of `folder` that belong to a network but hold none of its weights; `reserved` names those that it writes itself."""
    found = (path for path in sorted(folder.iterdir()) if path.name not in reserved and not path.name.startswith("."))
    return tuple(path for path in found if _fits(path))


def _fits(path: Path) -> bool:
    named = path.suffix in SUFFIXES or path.name in LICENCES
    return named and ".index." not in path.name and path.is_file() and path.stat().st_size <= LARGEST_BYTES


def copy_companions(sources: tuple[Path, ...], folder: Path) -> None:
    """Each atomically. Raises FileError when one cannot be read or `folder` cannot be written."""
    for source in sources:
        write_with(folder / source.name, partial(_copy, source))


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)
