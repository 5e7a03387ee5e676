"""Finding what "package.module:name" names in the user's own code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from gossamer.errors import ConfigError, GossamerError, nearest

_OWN_FOLDER = str(Path(__file__).parents[1])


class UserCodeError(GossamerError):
    """The user's module, factory or loaders raised; the message names their line, `__cause__` is their exception."""


def resolve(text: str, what: str) -> Any:
    """Import "package.module:name" and return the object. The current folder can be imported from.

    Raises: ConfigError when the text has another form, or module or name do not exist; UserCodeError when the module
    raises while it is imported.
    """
    module_name, colon, attribute = text.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(what, text, "of the form package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    value: Any = call_user(lambda: _import(module_name, what), f"importing {module_name}")
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise ConfigError(what, text, f"a name that {module_name} has ({nearest(name, _names(value))})")
        value = getattr(value, name)
    return value


def _names(value: Any) -> list[str]:
    """Public names that may have been meant: of a module not what it imports from installed packages (torch, nn, DataLoader)."""
    found = {name: held for name, held in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    if not isinstance(value, ModuleType):
        return list(found)
    return [name for name, held in found.items() if not _is_installed(held)]


def _is_installed(held: Any) -> bool:
    """Whether this is a module, or a class or function that an installed package defines."""
    if isinstance(held, ModuleType):
        return True
    home = sys.modules.get(getattr(held, "__module__", None) or "") if hasattr(held, "__qualname__") else None
    return home is not None and _is_foreign(getattr(home, "__file__", None) or "<frozen>")


def call_user(function: Callable[[], Any], doing: str) -> Any:
    """Run code of the user's. Raises UserCodeError with its exception and line, in one sentence."""
    try:
        return function()
    except GossamerError:
        raise
    except Exception as error:  # the user's code may raise anything
        line = _user_line(error)
        at = f" at {line}" if line else ""
        message = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
        raise UserCodeError(
            f"{doing} failed{at} ({reason}); mend that line, or run with --debug to see where it was called from."
        ) from error


def _import(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            rule = f"in an importable module (no module {error.name!r} in {os.getcwd()} or among the installed packages)"
            raise ConfigError(what, name, rule) from error
        raise


def _user_line(error: Exception) -> str:
    """The deepest line of the traceback that is neither ours nor an installed package's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _is_foreign(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return ""


def _is_foreign(path: str) -> bool:
    """Whether a source file is ours, Python's, or an installed package's."""
    return path.startswith((_OWN_FOLDER, "<frozen")) or "site-packages" in path or "/lib/python" in path
