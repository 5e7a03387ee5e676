"""Named entries that third parties can add to: a duplicate raises, an unknown name suggests the nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from gossamer.errors import ConfigError, nearest

T = TypeVar("T")
PLUGIN_GROUP = "gossamer.plugins"


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One registered thing. `source` says where the method comes from (authors, year, arXiv number)."""

    name: str
    value: T
    source: str


class Registry(Generic[T]):
    """A table of named entries of one kind.

    Plug-ins, and `home`, the module whose import fills the table where that is another one, are imported when a name is first
    looked up.
    """

    _plugins_loaded = False

    def __init__(self, kind: str, *, home: str = "") -> None:
        self.kind = kind
        self._home = home
        self._entries: dict[str, Entry[T]] = {}

    def add(self, name: str, *, source: str = "") -> Callable[[T], T]:
        """Return a decorator that registers its argument under `name`. Raises ConfigError for a duplicate."""

        def register(value: T) -> T:
            if name in self._entries:
                raise ConfigError(f"{self.kind} name", name, "one that is not registered yet")
            self._entries[name] = Entry(name, value, source)
            return value

        return register

    def remove(self, name: str) -> None:
        """Take an entry out again, as a test or a notebook that tries one does. Raises ConfigError naming the nearest known name."""
        del self._entries[self.entry(name).name]

    def entry(self, name: str) -> Entry[T]:
        """Look up one entry. Raises ConfigError naming the nearest known name."""
        self._load_home()
        if name not in self._entries:  # reading what is installed takes a while: only where it may matter
            self._load_plugins()
        if name not in self._entries:
            raise ConfigError(self.kind, name, f"a registered {self.kind} ({nearest(str(name), self._entries)})")
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        return self.entry(name).value

    def __contains__(self, name: str) -> bool:
        self._load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        self._load_plugins()
        return iter(self._entries.values())

    def names(self) -> tuple[str, ...]:
        """All registered names, in order of registration."""
        self._load_plugins()
        return tuple(self._entries)

    def _load_home(self) -> None:
        if self._home:
            home, self._home = self._home, ""
            import_module(home)

    def _load_plugins(self) -> None:
        self._load_home()
        if not Registry._plugins_loaded:
            Registry._plugins_loaded = True
            for plugin in entry_points(group=PLUGIN_GROUP):
                plugin.load()
