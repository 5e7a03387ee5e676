"""The user's model as torch.export wants it (positional arguments in, one tensor out), and its failures as lines of the user's code."""

from __future__ import annotations

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Adapter = Callable[[Any], Tensor] | str | int
TORCH_FOLDER = f"{Path(torch.__file__).parent}{os.sep}"  # with the separator, or it would cover torchvision
OWN_FOLDER = f"{Path(__file__).parents[1]}{os.sep}"
_STANDARD_FOLDER = sysconfig.get_paths()["stdlib"]


class Adapted(nn.Module):
    """The user's model with positional arguments only, and its output reduced to one tensor.

    `keywords` are the names that the last arguments are passed on by.
    """

    def __init__(self, model: nn.Module, keywords: tuple[str, ...], output: Adapter | None) -> None:
        super().__init__()
        self.model = model
        self.keywords = keywords
        self.output = output

    def forward(self, *args: Any) -> Any:
        first = len(args) - len(self.keywords)
        result = self.model(*args[:first], **dict(zip(self.keywords, args[first:], strict=True)))
        match self.output:
            case None:
                return result
            case str() | int():
                return result[self.output]
            case _:
                return self.output(result)

    @property
    def input_names(self) -> dict[str, str]:
        """Names that export gives to the wrapper's arguments -> names in the user's forward."""
        if self.keywords:
            return {f"args_{position}": name for position, name in enumerate(self.keywords)}
        parameters = inspect.signature(self.model.forward).parameters.values()
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return {f"args_{position}": name for position, name in enumerate(positional)}


def adapt(model: nn.Module, example: Any, output: Adapter | None, *, dynamic_batch: bool = True) -> tuple[Adapted, tuple[Any, ...]]:
    """The wrapper and its arguments; a batch of one that is to be dynamic is doubled, since export takes 1 for a constant."""

    def widen(value: Any) -> Any:
        if dynamic_batch and isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
            return torch.cat([value, value])
        return value

    keywords: tuple[str, ...] = ()
    if isinstance(example, Tensor):
        args: tuple[Any, ...] = (example,)
    elif isinstance(example, Mapping):
        keywords, args = tuple(example), tuple(example.values())
    else:
        args = tuple(example)
    return Adapted(model, keywords, output), tuple(tree_map(widen, value) for value in args)


def fresh(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies, so that a forward that writes into its input does not reach the caller's tensors."""
    copied: tuple[Any, ...] = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, args)
    return copied


def user_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither torch's, nor Python's, nor ours."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        foreign = frame.filename.startswith((TORCH_FOLDER, OWN_FOLDER, "<"))
        standard = frame.filename.startswith(_STANDARD_FOLDER) and "-packages" not in frame.filename
        if not foreign and not standard:
            found = f"{frame.filename}:{frame.lineno} ({frame.line})"
    return found
