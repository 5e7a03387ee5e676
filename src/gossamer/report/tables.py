"""Tables on a console: they fit its width, and what does not fit is folded, never cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class FittingTable:
    """A table that rich prints. Names in it are printed as they are, never read as markup.

    left  how many columns, from the first, have their text on the left; so does the last column where `last_left`
    """

    title: str | None
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    last_left: bool = False
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Headings break at "_" and " " only where the console is too narrow for the table with whole ones; then short names stay whole."""
        from rich.cells import cell_len

        whole = self._table(self.header, padding=1)
        if console.measure(whole, options=options.update(width=_ANY_WIDTH)).maximum <= options.max_width:
            yield whole
            return
        narrow = self._table([name.replace("_", "_\n").replace(" ", "\n") for name in self.header], padding=0)
        narrow.columns[0].no_wrap = max((cell_len(row[0]) for row in self.rows), default=0) <= options.max_width // 4
        yield narrow

    def _table(self, header: Iterable[str], padding: int) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        options: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, padding)}
        if self.title is not None:
            options |= {"title": Text(self.title), "title_justify": "left", "title_style": "bold"}
        if self.note:
            options |= {"caption": Text(self.note), "caption_justify": "left"}
        table = Table(**options)
        for position, name in enumerate(header):
            is_left = position < self.left or (self.last_left and position == len(self.header) - 1)
            table.add_column(Text(name), justify="left" if is_left else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


_ANY_WIDTH = 10_000
