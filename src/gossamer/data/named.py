"""Finding the data that the command line names."""

from __future__ import annotations

from dataclasses import replace

from gossamer.data.images import ImageOptions, images
from gossamer.data.mnist import mnist
from gossamer.data.options import split_options
from gossamer.data.source import Data, as_data
from gossamer.data.user_code import call_user, resolve
from gossamer.errors import ConfigError

FORMS = "mnist, mnist:DIR, images:DIR, or package.module:loaders"


def load_data(text: str) -> Data:
    """Data by name, with calibration and validation present.

    text  "mnist" (5,000 digits of this package), "mnist:DIR" (IDX files), "images:DIR?size=224" (one folder per class),
          or "package.module:loaders": Data, a mapping, a tuple, or a function without arguments that returns one

    Raises: ConfigError for another form, FileError and DataError for sources that cannot be used, UserCodeError when
    the user's function raises.
    """
    kind, colon, rest = text.partition(":")
    if text == "mnist":
        return mnist()
    if not colon or not rest:
        raise ConfigError("data", text, FORMS)
    match kind:
        case "mnist":
            return mnist(rest)
        case "images":
            folder, options = split_options(rest)
            return images(folder, ImageOptions.from_options(options))
    found = resolve(text, "data")
    made = call_user(found, f"calling {text}") if callable(found) and not hasattr(found, "validation") else found
    data = as_data(made)
    return data if data.name else replace(data, name=text)
