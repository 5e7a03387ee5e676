"""torch's transformer layers in the form that export can follow, for as long as a model is captured.

While they evaluate, `nn.TransformerEncoder`, its layers and `nn.MultiheadAttention` take a fast path that is no graph. It gives zeros
at padded positions and takes a mask of numbers for one of yes and no; step by step, as in training and in every exported file, they
compute their own output at padded positions, too, and add such a mask. All else is the same. A mask without the hint `is_causal` is
compared with a causal one, which would make the graph depend on numbers; the hint changes no result, since the mask itself is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_HINTS: Mapping[type[nn.Module], str] = {nn.TransformerEncoder: "is_causal", nn.TransformerDecoder: "tgt_is_causal"}
_FAST = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@contextmanager
def plain_transformers(model: nn.Module) -> Iterator[None]:
    """Within it, transformer layers compute step by step, and their masks are not looked into."""
    before = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for module in model.modules():
            for kind, hint in _HINTS.items():
                if isinstance(module, kind):
                    handle = module.register_forward_pre_hook(_with_hint(hint), with_kwargs=True)
                    stack.callback(handle.remove)
        stack.callback(torch.backends.mha.set_fastpath_enabled, before)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def has_fast_path(model: nn.Module) -> bool:
    """Whether the model may compute in another way while it evaluates."""
    return torch.backends.mha.get_fastpath_enabled() and any(isinstance(module, _FAST) for module in model.modules())


def _with_hint(hint: str) -> Callable[..., Any]:
    def fill_in(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        try:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
        except TypeError:  # the call itself says best what is wrong with it
            return None
        if bound.arguments.get(hint) is None:
            bound.arguments[hint] = False
        return bound.args, bound.kwargs

    return fill_in
