"""The one place that imports ExecuTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gossamer.errors import MissingRuntime

# its own requirements ask for much that neither writing nor running a file needs, such as converters for other chips
INSTALL = "pip install --no-deps executorch==1.5.1 torchao==0.18.0 flatbuffers ruamel.yaml tabulate"


RUNTIME = "extension.pybindings._C"  # what its Python runtime wraps: alone it is loaded in a moment, with the wrapper in seconds


def part(name: str) -> Any:
    """The module executorch.NAME. Raises MissingRuntime with the command that installs the package."""
    with quiet():
        try:
            return import_module(f"executorch.{name}")
        except ImportError as error:
            raise _missing(error) from error


def folder() -> Path:
    """Where the package lies, without importing anything of it: its schemas are read from there. Raises MissingRuntime where it is missing."""
    try:
        spec = find_spec("executorch")
    except (ImportError, ValueError) as error:
        raise _missing(error) from error
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise _missing("its schemas are not there")
    return Path(places[0])


def _missing(reason: object) -> MissingRuntime:
    return MissingRuntime("executorch", f"writing and running .pte files ({reason})", INSTALL)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep its imports and passes from configuring this process's log, and from warnings that only its authors can act on."""
    root = logging.getLogger()
    handlers, disabled = list(root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.handlers[:] = handlers
        logging.disable(disabled)
