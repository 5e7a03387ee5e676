"""The pages' templates: base.html is what all share, page.css their style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def render(name: str, **values: Any) -> str:
    """The HTML of a template of this folder; every text in `values` is escaped. A value that a template lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(style=style, **values)
