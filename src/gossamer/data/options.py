"""Names with options, as the command line writes them: "images:photos?size=160,std=0.5"."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from gossamer.errors import ConfigError, nearest

Option = int | float | bool | str


def split_options(text: str) -> tuple[str, dict[str, Option]]:
    """Split "name?key=value,key=value" into the name and its options; numbers, true and false are read as such.

    Raises: ConfigError for an option without "=".
    """
    name, _, tail = text.partition("?")
    options: dict[str, Option] = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError("option", item, f"of the form key=value (in {text!r})")
        options[key.strip()] = _literal(value.strip())
    return name, options


def check_known(options: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ConfigError for an option that `where` does not have, with the nearest that it has."""
    for key in options:
        if key not in known:
            raise ConfigError(f"option of {where}", key, f"a known one ({nearest(key, known)})")


def _literal(text: str) -> Option:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (int, float)) else text
