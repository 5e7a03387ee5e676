"""The one place that imports ExecuTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from gossamer.errors import MissingRuntime

# its own requirements ask for much that neither writing nor running a file needs, such as converters for other chips
INSTALL = "pip install --no-deps executorch==1.5.1 torchao==0.18.0 flatbuffers ruamel.yaml tabulate"


def part(name: str) -> Any:
    """The module executorch.NAME. Raises MissingRuntime with the command that installs the package."""
    with quiet():
        try:
            return import_module(f"executorch.{name}")
        except ImportError as error:
            raise MissingRuntime("executorch", f"writing and running .pte files ({error})", INSTALL) from error


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
