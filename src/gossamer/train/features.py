"""Distillation of intermediate values: the student's features are drawn towards the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, DataError, nearest
from gossamer.program.program import Program

Values = dict[str, Any]


def value_named(program: Program, name: str, whose: str) -> str:
    """The value called `name`, or the last one that the module `name` makes. Raises ConfigError for neither."""
    if name in program.graph.by_name or name in program.graph.inputs:
        return name
    made = [node.name for node in program.graph.nodes if node.module == name or node.module.startswith(f"{name}.")]
    if not made:
        modules = {node.module for node in program.graph.nodes if node.module}
        raise ConfigError("Recipe.features", name, f"a module or value of the {whose} ({nearest(name, modules)})")
    return made[-1]


class Watcher:
    """Runs a network and keeps the named features. Raises ConfigError for a name that the network does not have."""

    def __init__(self, network: nn.Module, names: tuple[str, ...], whose: str) -> None:
        self._network = network
        self._whose = whose
        self._places: dict[str, Any] = {}
        for name in names:
            if isinstance(network, Program):
                self._places[name] = value_named(network, name, whose)
            else:
                modules = dict(network.named_modules())
                if name not in modules:
                    raise ConfigError("Recipe.features", name, f"a module of the {whose} ({nearest(name, filter(None, modules))})")
                self._places[name] = modules[name]

    def __call__(self, *inputs: Tensor, **how: Any) -> tuple[Any, Mapping[str, Tensor]]:
        """(outputs, features by name); `how` goes to Program.run."""
        found: Values = {}
        if isinstance(self._network, Program):
            watch = {place: _keeper(found, self._places, place) for place in self._places.values()} or None
            outputs = self._network.run(*inputs, observe=watch, **how)
        else:
            with _hooked(self._places, found):
                outputs = self._network(*inputs)
        for name, value in found.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise DataError(f"the feature {name!r} of the {self._whose} is no tensor of floats; name another module or value.")
        return outputs, found


def feature_error(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Mean over the features of mean (student - teacher)^2 / mean teacher^2, ().

    Raises: DataError for features of different shapes.
    Source: Romero et al. 2015 (FitNets), arXiv:1412.6550, without the regressor, so that both sides must have the same shape.
    """
    errors = []
    for name, value in student.items():
        wanted = teacher[name].detach().float()
        if value.shape != wanted.shape:
            raise DataError(
                f"the feature {name!r} is {tuple(value.shape)} in the network and {tuple(wanted.shape)} in its teacher; "
                "name features that kept their shape."
            )
        size = wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append((value.float() - wanted).square().mean() / size)
    return torch.stack(errors).mean()


def _keeper(found: Values, places: Mapping[str, str], place: str) -> Callable[[str, Any], None]:
    def keep(_: str, value: Any) -> None:
        found.update((name, value) for name, wanted in places.items() if wanted == place)

    return keep


@contextmanager
def _hooked(places: Mapping[str, nn.Module], found: Values) -> Iterator[None]:
    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, result: Any) -> None:
            found[name] = result.clone() if isinstance(result, Tensor) else result  # a layer behind may write into it

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in places.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
