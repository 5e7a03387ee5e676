"""A work folder belongs to one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.errors import ConfigError
from gossamer.files import read_json, write_json


def claim(folder: Path, run: Mapping[str, Any], argument: str) -> None:
    """Note in the folder which run it belongs to; refuse a folder of another run, so that nothing is mixed up.

    run       plain data that tells the run from every other
    argument  what the caller calls the folder

    Raises: ConfigError naming what differs; FileError when the note is damaged or cannot be written.
    """
    path = folder / "run.json"
    if path.exists():
        known = read_json(path, "run of gossamer")
        known = known if isinstance(known, dict) else {}
        changed = sorted(name for name in {**known, **run} if known.get(name) != run.get(name))
        if changed:
            raise ConfigError(argument, str(folder), f"empty or of the same run (its {', '.join(changed)} differs); choose another folder")
    write_json(path, dict(run))
