"""report.json and report.html in a folder: reading with a check, writing so that a crash leaves no half file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.errors import DataError, FileError
from gossamer.files import read_json, write_json, write_text
from gossamer.report.content import Content
from gossamer.report.page import render_page

JSON_NAME = "report.json"
PAGE_NAME = "report.html"


def load_report(path: str | Path) -> dict[str, Any]:
    """Read a report document: report.json itself, or the folder that holds it.

    Raises: FileError when it is missing, truncated, or something else than a report.
    """
    path = Path(path)
    path = path / JSON_NAME if path.is_dir() else path
    document = read_json(path, "report")
    try:
        Content.from_dict(document)
    except DataError as error:
        raise FileError(path, f"is no report that can be shown ({str(error).rstrip('.')})", "name a report.json of ours") from error
    return dict(document)


def write_report(document: Mapping[str, Any], folder: str | Path) -> tuple[Path, Path]:
    """Write report.json and report.html, each atomically, and return their paths.

    Raises: DataError for a document that is no report; FileError when the folder cannot be written.
    """
    document = _strict(document)
    page = render_page(Content.from_dict(document))
    folder = Path(folder)
    write_json(folder / JSON_NAME, document)
    write_text(folder / PAGE_NAME, page)
    return folder / JSON_NAME, folder / PAGE_NAME


def _strict(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
